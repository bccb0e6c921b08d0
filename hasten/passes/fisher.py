"""Heads and neurons pruned by Fisher information, rearranged, and their masks tuned: no training, minutes.

Takes a wrapper and the share of the encoder's cost to keep, gives the wrapper with fewer heads and neurons.

Source: Kwon et al. 2022, "A Fast Post-Training Pruning Framework for Transformers". With a mask m (ones) on every
unit and g_b = dL_b/dm of minibatch b: importance I_i = sum_b g_bi^2; search under a budget
(:mod:`hasten.passes.unit_budget`); rearrangement lowers (1 - m)^T F (1 - m) with F = sum_b g_b g_b^T within a layer;
tuning solves for mask values that give back the dense layer's output (:mod:`hasten.passes.reconstruction`).

Legend: M minibatches, U units of one sublayer.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hasten.passes.calibration import Calibration
from hasten.passes.reconstruction import Walk, fold, fold_scales, moments, sublayers, tuned_masks
from hasten.passes.settings import as_declared
from hasten.passes.unit_budget import search
from hasten.passes.units import Costs, PerUnit, Units, batches_of, by_length, check_settings, share
from hasten.records import InputError

_TUNE_ROWS = 512
_DAMP = 1.0
_LARGEST_MASK = 10.0
_SWAPS = 200
_CANDIDATES = 256


@dataclass(frozen=True, slots=True)
class FisherConfig:
    """Keep the share ``keep`` of the encoder layers' MACs, or of their milliseconds when ``unit_costs`` gives the
    measured time of one head and one neuron. FFN widths are multiples of ``round_to``. ``batch`` rows share one
    gradient g_b: 32 in the paper; 1 estimates the same thing with less noise, for more memory."""

    kind: ClassVar[str] = "fisher"
    keep: float = 0.6
    rearrange: bool = True
    tune: bool = True
    unit_costs: tuple[float, float] | None = None
    round_to: int = 32
    rows: int = 2048
    batch: int = 1

    def __post_init__(self) -> None:
        as_declared(self)
        check_settings(keep=self.keep, round_to=self.round_to, rows=self.rows)
        if self.batch < 1 or (self.unit_costs is not None and min(self.unit_costs) <= 0):
            raise InputError(
                f"batch={self.batch}, unit_costs={self.unit_costs}",
                expected="at least one row a gradient, and costs (head_ms, neuron_ms) above zero",
                remedy="correct the recipe",
            )

    @property
    def label(self) -> str:
        what = "MACs" if self.unit_costs is None else "ms"
        off = "".join(text for used, text in ((self.rearrange, " unrearranged"), (self.tune, " untuned")) if not used)
        return f"fisher {share(self.keep)} {what}{off}"


def prune_fisher(model: Any, config: FisherConfig, calibration: Calibration) -> Any:
    """The wrapper with the heads and neurons that matter most to the task loss.

    Costs about three forward passes a row for the gradients and six of 512 rows for tuning. Raises Rejected for a
    family without an adapter, factorised layers, or a budget below one head and ``round_to`` neurons a layer.
    """
    units = Units(model, kind=config.kind, what="Fisher pruning")
    gradients = minibatch_gradients(units, calibration, rows=config.rows, batch=config.batch)
    costs = units.costs(calibration) if config.unit_costs is None else Costs(*config.unit_costs)
    masks = search(
        gradients.map(importance), costs, budget=config.keep * costs.of(units.ones()), round_to=config.round_to,
        kind=config.kind,
    )  # fmt: skip
    if config.rearrange:
        pairs = zip(masks.both(), gradients.both(), strict=True)
        swapped = [rearranged(mask, gradient) for mask, gradient in pairs]
        masks = units.apart(swapped)
    fold_scales(units.adapter, units.layers)
    dense = copy.deepcopy(units.layers) if config.tune else None
    units.keep(masks)
    if dense is not None:
        tune(units, dense, calibration, rows=min(config.rows, _TUNE_ROWS))
    return model


def minibatch_gradients(units: Units, calibration: Calibration, *, rows: int, batch: int) -> PerUnit:
    """g [M, U] of every sublayer: rows' gradients summed in groups of ``batch``, in the calibration's order."""
    found = list(units.gradients(calibration, rows=rows))
    back = torch.tensor([i for index in by_length(calibration, rows=rows) for i in index]).argsort()
    whole = [torch.cat(parts)[back] for parts in zip(*(f.both() for f in found), strict=True)]
    sums = [torch.stack([part.sum(dim=0) for part in torch.split(g, batch)]) for g in whole]
    return units.apart(sums)


def importance(gradients: Tensor) -> Tensor:
    """The diagonal of the empirical Fisher information: sum_b g_b^2, [M, U] -> [U]."""
    return gradients.square().sum(dim=0)


def cross_importance(mask: Tensor, gradients: Tensor) -> float:
    """(1 - m)^T F (1 - m) = ||sum of the pruned units' gradients||^2: what pruning them together costs."""
    return float((gradients.double() @ (mask == 0).double()).square().sum())


def rearranged(mask: Tensor, gradients: Tensor) -> Tensor:
    """Swap pruned and kept units, best swap first, while that lowers :func:`cross_importance`; numbers stay.

    A swap takes back i and prunes j: it changes the sum's square by |g_i|^2 - 2 s g_i + |g_j|^2 + 2 s g_j - 2 g_i g_j.
    In wide layers only the units that are best without the last term are tried with each other.
    """
    mask, g = mask.clone(), gradients.double()
    gram = g.T @ g
    squares = gram.diagonal()
    with_sum = gram @ (mask == 0).double()  # every unit's product with s, the sum of the pruned
    for _ in range(_SWAPS):
        pruned = _smallest(squares - 2 * with_sum, mask == 0)
        kept = _smallest(squares + 2 * with_sum, mask != 0)
        if not len(pruned) or not len(kept):
            break
        change = (squares - 2 * with_sum)[pruned, None] + (squares + 2 * with_sum)[kept] - 2 * gram[pruned][:, kept]
        best = int(change.argmin())
        back, out = pruned[best // len(kept)], kept[best % len(kept)]
        if float(change.flatten()[best]) >= -1e-9 * float(squares.sum()):
            break
        mask[back], mask[out] = 1.0, 0.0
        with_sum = with_sum - gram[back] + gram[out]
    return mask


def _smallest(values: Tensor, among: Tensor) -> Tensor:
    """Indices of the up to ``_CANDIDATES`` smallest values where ``among`` holds."""
    index = among.nonzero().flatten()
    return index[values[index].argsort()[:_CANDIDATES]]


def tune(units: Units, dense: nn.ModuleList, calibration: Calibration, *, rows: int) -> None:
    """Scale the units that stay so that each sublayer gives what the ``dense`` one gave, first layer first.

    A sublayer whose solution needs a value above 10 keeps its masks of one: it fits noise. The values become part of
    the output projection and of the FFN's second matrix.
    """
    batches = batches_of(calibration, rows=rows)
    whole, pruned = (Walk(units.model, units.layers, batches) for _ in range(2))
    for goal_layer, own_layer in zip(dense, units.layers, strict=True):
        pairs = zip(sublayers(units.adapter, goal_layer), sublayers(units.adapter, own_layer), strict=True)
        for goal, own in pairs:
            found = moments(goal, own, whole, pruned)
            values = tuned_masks(found, own.map.weight.detach(), width=own.width, damp=_DAMP)
            if float(values.abs().max()) <= _LARGEST_MASK:
                fold(own.map, values, width=own.width)
        whole.advance(goal_layer)
        pruned.advance(own_layer)
