"""Tiny models and calibrations that the tests of pruning share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tiny_models import IMAGES, SIDE, tiny_config

from hasten.passes.calibration import Calibration
from hasten.passes.units import Units
from hasten.tasks.wrappers import ImageWrapper, LogitsWrapper, Wrapper


def tiny(family: str = "bert", *, seed: int = 0, spread: float = 1.0, **changes: Any) -> Wrapper:
    """A random classifier of 4 layers, 4 heads and 64 neurons; ``spread`` multiplies the encoder's matrices."""
    from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

    torch.manual_seed(seed)
    config = tiny_config(family, **changes)
    if family in IMAGES:
        model: Wrapper = ImageWrapper(AutoModelForImageClassification.from_config(config)).eval()
    else:
        model = LogitsWrapper(AutoModelForSequenceClassification.from_config(config)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "layer" in name and weight.ndim == 2:
                weight *= spread
    return model


def rows_for(model: Any, *, count: int = 24, labels: bool = True, seed: int = 0) -> Calibration:
    """Rows of 3 to 13 tokens, or images, with what the model says for labels."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for length in rng.integers(3, 14, size=count):
        if isinstance(model, ImageWrapper):
            rows.append({"pixel_values": rng.normal(size=(1, 3, SIDE, SIDE)).astype(np.float32)})
            continue
        rows.append({"input_ids": rng.integers(4, 60, (1, length)), "attention_mask": np.ones((1, length), np.int64)})
    given = Calibration(rows, seed=seed)
    return Calibration(rows, targets=outputs(model, given).argmax(dim=1).numpy() if labels else None, seed=seed)


def outputs(model: Any, given: Calibration) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([model(**batch) for batch, _ in given.batches(batch=8)])


def units_of(model: Any) -> Units:
    return Units(model, kind="test", what="a test")


def counts(model: Any) -> tuple[list[int], list[int]]:
    """Heads and neurons of every layer."""
    units = units_of(model)
    return [parts.heads for parts in units.attention], [parts.up.out_features for parts in units.ffn]


def macs(model: Any, given: Calibration) -> float:
    units = units_of(model)
    return units.costs(given).of(units.ones())
