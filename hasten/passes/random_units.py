"""Heads and neurons pruned at random: the control that every other criterion has to beat.

Takes a wrapper and the share of the layers' MACs to keep, gives the wrapper with fewer heads and neurons. Cutting
only heads or only neurons shows what one of them costs on a host, which no choice of units changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from hasten.passes.calibration import Calibration
from hasten.passes.settings import as_declared
from hasten.passes.unit_budget import best_of_layer, cut_evenly
from hasten.passes.units import Units, check_settings, share
from hasten.records import InputError


@dataclass(frozen=True, slots=True)
class RandomUnitsConfig:
    """Keep the share ``keep`` of the encoder layers' MACs, or of every layer's heads or neurons alone (``which``);
    ``draw`` is one number for each further control."""

    kind: ClassVar[str] = "random_units"
    keep: float = 0.6
    round_to: int = 32
    draw: int = 0
    which: Literal["both", "heads", "neurons"] = "both"

    def __post_init__(self) -> None:
        as_declared(self)
        check_settings(keep=self.keep, round_to=self.round_to, rows=1)
        if self.draw < 0:
            raise InputError(f"draw={self.draw}", expected="0 or more", remedy="correct the recipe")

    @property
    def label(self) -> str:
        what = "MACs" if self.which == "both" else self.which
        return f"random {share(self.keep)} {what}" + (f" draw {self.draw}" if self.draw else "")


def prune_random_units(model: Any, config: RandomUnitsConfig, calibration: Calibration) -> Any:
    """The wrapper with heads and neurons drawn by the calibration's seed and ``draw``.

    Raises Rejected for a family without an adapter, factorised layers, or too small a budget.
    """
    units = Units(model, kind=config.kind, what="random pruning", stacks="several")
    generator = torch.Generator().manual_seed(calibration.seed * 1_000_003 + config.draw)
    scores = units.ones().map(lambda mask: torch.rand(mask.shape, generator=generator))
    if config.which == "both":
        cut_evenly(units, scores, calibration, keep=config.keep, round_to=config.round_to, kind=config.kind)
        return model
    kept = units.ones()
    parts, multiple = (kept.heads, 1) if config.which == "heads" else (kept.neurons, config.round_to)
    chosen = scores.heads if config.which == "heads" else scores.neurons
    parts[:] = [best_of_layer(score, config.keep, multiple=multiple) for score in chosen]
    units.keep(kept)
    return model
