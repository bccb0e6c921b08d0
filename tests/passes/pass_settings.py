"""What every pass is tested with: at least one config that changes a model of four layers, 4 heads, 64 neurons."""

from __future__ import annotations

from collections.abc import Mapping

from hasten.passes.distill import DistillConfig
from hasten.passes.layers import LayersConfig
from hasten.records import Config

SETTINGS: Mapping[str, tuple[Config, ...]] = {
    "layers": (LayersConfig(count=2), LayersConfig(count=2, by="influence"), LayersConfig(count=1, by="loss")),
    "distill": (DistillConfig(epochs=2, batch=8), DistillConfig(epochs=1, batch=8, relations=1.0, labels=0.5)),
}
