"""Columns of a matrix become what they have to be, one after the other, and those to the right make up for it.

Takes the second moment of a matrix's inputs and a rule that says what a column becomes (zeros, the nearest points of a
grid), gives the matrix with every column so. Knows nothing of the rules.

Source: the optimal brain surgeon (Hassibi and Stork 1993) in the order of Frantar and Alistarh 2023, "SparseGPT", and
Frantar et al. 2023, "GPTQ". With H = 2 X^T X + lambda and H^-1 = U^T U (U upper triangular), U_jj^2 is [H_F^-1]_jj over
the columns F that are still free, so one factor serves every step: moving column j by d moves those right of it by
(d / U_jj) U_j,>j.

Legend: O outputs, I inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hasten.records import Rejected

# The weights [O, I] as they are by now and the number of a column -> what it becomes [O].
Rule = Callable[[Tensor, int], Tensor]


def check_inputs(moment: Tensor, *, kind: str) -> None:
    """Raise Rejected where the inputs that a second moment is made of are not numbers."""
    if not bool(torch.isfinite(moment).all()):
        raise Rejected(kind, "the matrices' inputs are not numbers; the model overflows on the calibration rows")


def inverse_factor(moment: Tensor, *, damp: float, kind: str) -> Tensor:
    """U [I, I], upper triangular, with U^T U the inverse of H = 2 moment + lambda; float64.

    ``damp`` is lambda in mean diagonals of H. Raises as :func:`check_inputs`.
    """
    check_inputs(moment, kind=kind)
    hessian = 2 * moment.double()
    mean = hessian.diagonal().mean()
    # Inputs that are always zero say nothing: then every weight is as good as its size.
    shift = damp * mean if mean > 0 else torch.ones_like(mean)
    hessian = hessian + shift * torch.eye(len(hessian), dtype=hessian.dtype)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    found: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return found


def column_by_column(weight: Tensor, factor: Tensor, *, rule: Rule, block: int) -> Tensor:
    """``weight`` [O, I] in float64 with every column what ``rule`` says; ``factor`` is :func:`inverse_factor`'s.

    The rule sees columns of the same ``block`` in their latest form, and those behind it as the last block left them.
    """
    w = weight.double().clone()
    diagonal = factor.diagonal()
    width = w.shape[1]
    for start in range(0, width, block):
        end = min(start + block, width)
        errors = torch.zeros(len(w), end - start, dtype=w.dtype)
        for column in range(start, end):
            found = rule(w, column)
            error = (w[:, column] - found) / diagonal[column]
            w[:, column:end] -= torch.outer(error, factor[column, column:end])
            w[:, column] = found  # by arithmetic it is, up to the last digit
            errors[:, column - start] = error
        w[:, end:] -= errors @ factor[start:end, end:]
    return w
