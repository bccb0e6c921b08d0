"""Heads and neurons pruned by the size of the loss's gradient on their masks.

Takes a wrapper and the share of the layers' MACs to keep, gives the wrapper with fewer heads and neurons.

Source: Michel et al. 2019, "Are Sixteen Heads Really Better than One?": I_h = E |dL/dm_h| over rows, divided by the
L2 norm of the layer's scores. The norm makes layers comparable, but not heads with neurons, so the same share of both
goes. Unlike Fisher importance it takes no squares: many rows with a small gradient count like few with a large one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from hasten.passes.calibration import Calibration
from hasten.passes.settings import as_declared
from hasten.passes.unit_budget import cut_evenly
from hasten.passes.units import PerUnit, Units, check_settings, share


@dataclass(frozen=True, slots=True)
class GradientConfig:
    """Keep the share ``keep`` of the encoder layers' MACs, FFN widths in multiples of ``round_to``."""

    kind: ClassVar[str] = "gradient"
    keep: float = 0.6
    round_to: int = 32
    rows: int = 2048

    def __post_init__(self) -> None:
        as_declared(self)
        check_settings(keep=self.keep, round_to=self.round_to, rows=self.rows)

    @property
    def label(self) -> str:
        return f"gradient {share(self.keep)} MACs"


def prune_gradient(model: Any, config: GradientConfig, calibration: Calibration) -> Any:
    """The wrapper with the heads and neurons whose masks the loss feels most, about three forward passes a row.

    Raises Rejected for a family without an adapter, factorised layers, or too small a budget.
    """
    units = Units(model, kind=config.kind, what="gradient pruning", stacks="several")
    scores = sensitivities(units, calibration, rows=config.rows)
    cut_evenly(units, scores, calibration, keep=config.keep, round_to=config.round_to, kind=config.kind)
    return model


def sensitivities(units: Units, calibration: Calibration, *, rows: int) -> PerUnit:
    """E |dL/dm| over rows, each layer's heads and each layer's neurons divided by their L2 norm."""
    sums = None
    for found in units.gradients(calibration, rows=rows):
        sizes = [gradient.abs().sum(dim=0) for gradient in found.both()]
        sums = sizes if sums is None else [a + b for a, b in zip(sums, sizes, strict=True)]
    assert sums is not None
    return units.apart(sums).map(_unit_length)


def _unit_length(scores: Tensor) -> Tensor:
    length: Tensor = scores.norm()
    return scores / length.clamp(min=1e-30)
