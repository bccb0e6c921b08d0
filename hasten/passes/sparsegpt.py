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
from hasten.records import InputError, Rejected


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
            factor = inverse_factor(moment, damp=config.damp)
            for matrix in group:
                weight = matrix.linear.weight
                found = without(
                    weight.detach(), factor, sparsity=config.sparsity, pattern=config.pattern, block=config.block
                )
                with torch.no_grad():
                    weight.copy_(found)
    tell_zeros(matrices, calibration, kind=config.kind)
    return model


def inverse_factor(moment: Tensor, *, damp: float) -> Tensor:
    """U [I, I], upper triangular, with U^T U the inverse of H = 2 moment + lambda; float64."""
    if not bool(torch.isfinite(moment).all()):
        raise Rejected("sparsegpt", "the matrices' inputs are not numbers; the model overflows on the calibration rows")
    hessian = 2 * moment.double()
    mean = hessian.diagonal().mean()
    # Inputs that are always zero say nothing: then every weight is as good as its size.
    shift = damp * mean if mean > 0 else torch.ones_like(mean)
    hessian = hessian + shift * torch.eye(len(hessian), dtype=hessian.dtype)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    found: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return found


def without(weight: Tensor, factor: Tensor, *, sparsity: float, pattern: str | None, block: int) -> Tensor:
    """``weight`` [O, I] with zeros and the rest adjusted, in its own type; ``factor`` is :func:`inverse_factor`'s."""
    w = weight.double().clone()
    diagonal = factor.diagonal()
    width = w.shape[1]
    for start in range(0, width, block):
        end = min(start + block, width)
        errors = torch.zeros(len(w), end - start, dtype=w.dtype)
        step = (end - start) if pattern is None else pattern_of(pattern)[1]
        for column in range(start, end):
            place = (column - start) % step
            if place == 0:
                chosen = slice(column, column + step)
                scores = (w[:, chosen] / diagonal[chosen]).square()
                gone = lowest(scores, round(sparsity * scores.numel())) if pattern is None \
                    else ~pattern_mask(scores, pattern)  # fmt: skip
            error = torch.where(gone[:, place], w[:, column] / diagonal[column], 0.0)
            w[:, column:end] -= torch.outer(error, factor[column, column:end])
            # By arithmetic it is zero up to the last digit; a stored zero has to be one.
            w[:, column].masked_fill_(gone[:, place], 0.0)
            errors[:, column - start] = error
        w[:, end:] -= errors @ factor[start:end, end:]
    return w.to(weight.dtype)
