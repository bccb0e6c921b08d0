"""Weights become zero one column after the other, and those to the right make up for it: optimal brain surgeon.

Takes a wrapper and a share of zeros, gives the wrapper with that many zeros in its encoder's matrices and the other
weights changed so that outputs on the user's data stay as close as they can.

Source: Frantar and Alistarh 2023, "SparseGPT". With H = 2 X^T X + lambda and H^-1 = U^T U (U upper triangular), U_jj^2
is [H_F^-1]_jj over the columns F that are still free, so one factor serves every step: the score of a weight is
w_j^2 / U_jj^2, and setting it to zero changes those right of it by -(w_j / U_jj) U_j,>j. Masks are chosen for ``block``
columns at a time (or for every group of a pattern), after the columns before have done their part.

Legend: O outputs, I inputs of a matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hasten.passes.calibration import Calibration
from hasten.passes.matrices import encoder_matrices
from hasten.passes.settings import as_declared
from hasten.passes.sparsity import (
    amount,
    check_pattern,
    check_sparsity,
    layer_by_layer,
    lowest,
    pattern_mask,
    pattern_of,
    tell_zeros,
)
from hasten.passes.surgeon import column_by_column, inverse_factor
from hasten.records import InputError


@dataclass(frozen=True, slots=True)
class SparseGptConfig:
    """``sparsity`` is the share of zeros in every ``block`` columns of a matrix; a ``pattern`` such as ``"2:4"`` keeps
    2 of every 4 inputs instead, and must agree with the share. ``damp`` is lambda in mean diagonals of H."""

    kind: ClassVar[str] = "sparsegpt"
    sparsity: float = 0.5
    pattern: str | None = None
    rows: int = 512
    block: int = 128
    damp: float = 0.01

    def __post_init__(self) -> None:
        as_declared(self)
        check_sparsity(sparsity=self.sparsity, pattern=self.pattern, rows=self.rows)
        if self.block < 1 or not 0 < self.damp < 10 or (self.pattern and self.block % pattern_of(self.pattern)[1]):
            raise InputError(
                f"block={self.block}, damp={self.damp}, pattern={self.pattern}",
                expected="a block of whole groups of the pattern, and a damping between 0 and 10",
                remedy="correct the recipe",
            )

    @property
    def label(self) -> str:
        return f"sparsegpt {amount(sparsity=self.sparsity, pattern=self.pattern)} zeros"


def prune_sparsegpt(model: Any, config: SparseGptConfig, calibration: Calibration) -> Any:
    """The wrapper with zeros, layer by layer on the inputs that the layers below give by then.

    Costs two forward passes a row and one inverse for each of a layer's four inputs. Raises Rejected for a family
    without an adapter, a pattern that does not fit, or inputs that are not numbers.
    """
    matrices = encoder_matrices(model, what="SparseGPT")
    check_pattern(matrices, config.pattern, kind=config.kind)
    for groups in layer_by_layer(model, calibration, rows=config.rows, full=True, kind=config.kind):
        for group, moment in groups:
            factor = inverse_factor(moment, damp=config.damp, kind=config.kind)
            for matrix in group:
                weight = matrix.linear.weight
                found = without(
                    weight.detach(), factor, sparsity=config.sparsity, pattern=config.pattern, block=config.block
                )
                with torch.no_grad():
                    weight.copy_(found)
    tell_zeros(matrices, calibration, kind=config.kind)
    return model


def without(weight: Tensor, factor: Tensor, *, sparsity: float, pattern: str | None, block: int) -> Tensor:
    """``weight`` [O, I] with zeros and the rest adjusted, in its own type; ``factor`` is that of
    :func:`hasten.passes.surgeon.inverse_factor`."""
    rule = _Zeros(factor.diagonal(), sparsity=sparsity, pattern=pattern, block=block)
    return column_by_column(weight, factor, rule=rule, block=block).to(weight.dtype)


class _Zeros:
    """The rule: chosen for some columns together when the first of them is due, each column loses its lowest scores."""

    def __init__(self, diagonal: Tensor, *, sparsity: float, pattern: str | None, block: int) -> None:
        self.diagonal, self.sparsity, self.pattern = diagonal, sparsity, pattern
        self.step = block if pattern is None else pattern_of(pattern)[1]
        self.gone = torch.empty(0)

    def __call__(self, w: Tensor, column: int) -> Tensor:
        place = column % self.step
        if place == 0:
            chosen = slice(column, min(column + self.step, w.shape[1]))
            scores = (w[:, chosen] / self.diagonal[chosen]).square()
            self.gone = lowest(scores, round(self.sparsity * scores.numel())) if self.pattern is None \
                else ~pattern_mask(scores, self.pattern)  # fmt: skip
        return w[:, column].masked_fill(self.gone[:, place], 0.0)
