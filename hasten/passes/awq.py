"""Channels with large inputs are made larger before rounding, where what makes them can be made smaller for it.

Takes a wrapper, gives the wrapper with fp32 weights on an integer grid, which ``save_model`` stores as packed codes and
scales (:mod:`hasten.models.grid_store`).

Source: Lin et al. 2023, "AWQ: Activation-aware Weight Quantization". Column j of a matrix is multiplied by
s_j = |X_j|^a before it is rounded and its input divided by it; a is searched on a grid from 0 to 1, and so is how much
of its range each group gives up, by the error of the matrix's outputs on the user's rows.

What is scaled and what not: the division must cost nothing, so s goes only where it has an exact place, as
:func:`hasten.passes.smooth_quant.folds` says: value -> output, up -> down with ReLU or a gate, first -> second factor,
and a norm in front of its sublayer -> what reads it, all of them with one s. In a post-norm encoder the norms are no
such place. Everywhere else the range alone is searched. |X_j| is the root of the mean square, which the second moment
of the inputs holds, and not the mean of the magnitudes.

Legend: O outputs, I inputs of a matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from hasten.models.prefix import has_prefixes
from hasten.passes.calibration import Calibration, Progress
from hasten.passes.grid import GridSpec, Group, check_grid, clipped, fitted, output_error
from hasten.passes.matrices import encoder_matrices
from hasten.passes.settings import as_declared
from hasten.passes.smooth_quant import Fold, fold, folds
from hasten.passes.sparsity import layer_by_layer
from hasten.passes.surgeon import check_inputs
from hasten.records import InputError

# Powers that are tried, as in the paper.
_POWERS = tuple(step / 20 for step in range(1, 21))
_SMALLEST = 1e-4


@dataclass(frozen=True, slots=True)
class AwqConfig:
    """``bits`` of a weight; ``group`` inputs share a step (``None``: a whole row), ``symmetric`` or with a zero point.
    ``clip``: search each group's range; ``rows`` rows say what outputs are."""

    kind: ClassVar[str] = "awq"
    bits: Literal[2, 3, 4, 8] = 4
    group: Group = 64
    symmetric: bool = True
    clip: bool = True
    rows: int = 256

    def __post_init__(self) -> None:
        as_declared(self)
        check_grid(self.grid, bits=(2, 3, 4, 8))
        if self.rows < 1:
            raise InputError(f"rows={self.rows}", expected="at least one row", remedy="correct the recipe")

    @property
    def grid(self) -> GridSpec:
        return GridSpec(self.bits, self.group, self.symmetric)

    @property
    def label(self) -> str:
        return f"awq {self.grid.label}" + " unclipped" * (not self.clip)


@torch.no_grad()
def quantize_awq(model: Any, config: AwqConfig, calibration: Calibration) -> Any:
    """The wrapper with its matrices on the grid, layer by layer on the inputs that the layers below give by then.

    Costs two forward passes a row, and some tens of roundings of every matrix. Raises Rejected for a family without an
    adapter, or inputs that are not numbers.
    """
    pairs = exact_folds(model)
    scaled = tried = 0
    for groups in layer_by_layer(model, calibration, rows=config.rows, full=True, kind=config.kind):
        linears = [matrix.linear for matrices, _ in groups for matrix in matrices]
        moments = {id(matrix.linear): moment for matrices, moment in groups for matrix in matrices}
        for moment in moments.values():
            check_inputs(moment, kind=config.kind)
        for pair in (pair for pair in pairs if id(pair.takers[0]) in moments):
            moment = moments[id(pair.takers[0])]
            scales = channel_scales(pair.weight, moment, spec=config.grid)
            fold(pair, scales)
            moments |= {id(taker): moment / torch.outer(scales, scales) for taker in pair.takers}
            scaled, tried = scaled + int(bool((scales != 1).any())), tried + 1
        for linear in linears:  # after all of the layer's foldings, which change the weights of the makers among them
            found = within_range(linear.weight, moments[id(linear)], spec=config.grid, clip=config.clip)
            linear.weight.copy_(found)
    calibration.listen(Progress(f"AWQ: {scaled} of {tried} foldings help", 1, 1, note=True))
    return model


def exact_folds(model: Any) -> list[Fold]:
    """Where a factor can go; nowhere in a model with prefixes, whose values no map makes."""
    encoder_matrices(model, what="AWQ")
    return [] if has_prefixes(model.hf) else folds(model)


def channel_scales(weight: Tensor, moment: Tensor, *, spec: GridSpec) -> Tensor:
    """s [I], in the weight's type, for which Q(W s) / s changes the outputs least; ``weight`` [O, I] is all that takes
    the inputs whose second moment is ``moment`` [I, I].

    Ones where no power is better than plain rounding.
    """
    best = torch.ones(weight.shape[1], dtype=weight.dtype)
    least = output_error(weight, fitted(weight, spec).nearest(weight), moment)
    sizes = moment.diagonal().clamp(min=0.0).sqrt()
    if not bool(sizes.any()):
        return best
    sizes = (sizes / sizes.max()).clamp(min=_SMALLEST)
    for power in _POWERS:
        scales = sizes**power
        scales = (scales / (scales.max() * scales.min()).sqrt()).to(weight.dtype)
        wide = weight * scales
        error = output_error(weight, fitted(wide, spec).nearest(wide) / scales, moment)
        if error < least:
            best, least = scales, error
    return best


def within_range(weight: Tensor, moment: Tensor, *, spec: GridSpec, clip: bool) -> Tensor:
    """``weight`` [O, I] on the grid; with ``clip`` on that of the searched ranges, where its outputs are closer."""
    plain = fitted(weight, spec).nearest(weight)
    if not clip:
        return plain
    found = clipped(weight, spec, moment=moment).nearest(weight)
    # Groups were searched one by one; together their errors may add up or cancel.
    return min(plain, found, key=lambda rounded: output_error(weight, rounded, moment))
