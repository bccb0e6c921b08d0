"""Heads and neurons pruned by the size of their weights: needs no data, and knows nothing of the task.

Takes a wrapper and the share of the layers' MACs to keep, gives the wrapper with fewer heads and neurons. A head's
score is the L2 norm of its rows of Q, K, V and its columns of the output projection; a neuron's, of its row of the
first and its column of the second FFN matrix. The two sizes do not compare, so the same share of both goes.

Source: structured magnitude pruning as in Li et al. 2017, "Pruning Filters for Efficient ConvNets" (L1 there).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hasten.models.adapter import AttentionParts, FeedForward
from hasten.models.surgery import unit_rows
from hasten.passes.calibration import Calibration
from hasten.passes.settings import as_declared
from hasten.passes.unit_budget import cut_evenly
from hasten.passes.units import PerUnit, Units, check_settings, share


@dataclass(frozen=True, slots=True)
class MagnitudeUnitsConfig:
    """Keep the share ``keep`` of the encoder layers' MACs, FFN widths in multiples of ``round_to``."""

    kind: ClassVar[str] = "magnitude_units"
    keep: float = 0.6
    round_to: int = 32

    def __post_init__(self) -> None:
        as_declared(self)
        check_settings(keep=self.keep, round_to=self.round_to, rows=1)

    @property
    def label(self) -> str:
        return f"magnitude {share(self.keep)} MACs"


def prune_magnitude_units(model: Any, config: MagnitudeUnitsConfig, calibration: Calibration) -> Any:
    """The wrapper with the largest heads and neurons; the calibration says only how long rows are.

    Raises Rejected for a family without an adapter, factorised layers, or too small a budget.
    """
    units = Units(model, kind=config.kind, what="magnitude pruning", stacks="several")
    scores = PerUnit([head_norms(parts) for parts in units.attention], [neuron_norms(ffn) for ffn in units.ffn])
    cut_evenly(units, scores, calibration, keep=config.keep, round_to=config.round_to, kind=config.kind)
    return model


@torch.no_grad()
def head_norms(attention: AttentionParts) -> Tensor:
    """[G], one for each group of heads that can only go together (a head, where each has its own key)."""
    columns = attention.output.weight.square().sum(dim=0)
    squares = columns.view(attention.groups, attention.group_dim).sum(dim=1)
    for linear, blocks in unit_rows(attention):
        rows = linear.weight.square().sum(dim=1)
        squares = squares + torch.stack([rows[block].sum(dim=1) for block in blocks]).sum(dim=0)
    return squares.sqrt()


@torch.no_grad()
def neuron_norms(ffn: FeedForward) -> Tensor:
    """[N]; where the FFN has a gate, its row counts too."""
    rows = torch.stack([linear.weight.square().sum(dim=1).view(-1, ffn.neurons) for linear in ffn.inputs])
    return (rows.sum(dim=(0, 1)) + ffn.down.weight.square().sum(dim=0)).sqrt()
