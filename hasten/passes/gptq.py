"""Columns are rounded one after the other, and those to the right make up for what rounding changed.

Takes a wrapper, gives the wrapper with fp32 weights on an integer grid whose outputs on the user's data stay as close
as they can. ``save_model`` stores them as packed codes and scales (:mod:`hasten.models.grid_store`).

Source: Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers". With
U the factor of the inputs' inverse Hessian (:mod:`hasten.passes.surgeon`): err = (w_j - q_j) / U_jj and
W_>j -= err U_j,>j. A group's grid is that of its columns when the first of them is due. With ``act_order`` the columns
with the largest inputs go first, on grids that are found beforehand, so that a group stays together in the file.

Legend: O outputs, I inputs of a matrix, S inputs of a group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from hasten.passes.calibration import Calibration
from hasten.passes.grid import Grid, GridSpec, Group, check_grid, fitted
from hasten.passes.settings import as_declared
from hasten.passes.sparsity import layer_by_layer
from hasten.passes.surgeon import column_by_column, inverse_factor
from hasten.records import InputError

# Whole groups of every size.
_BLOCK = 128


@dataclass(frozen=True, slots=True)
class GptqConfig:
    """``bits`` of a weight; ``group`` inputs share a step (``None``: a whole row), ``symmetric`` or with a zero point.
    ``act_order``: columns with large inputs first; ``damp`` is lambda in mean diagonals of the Hessian."""

    kind: ClassVar[str] = "gptq"
    bits: Literal[2, 3, 4, 8] = 4
    group: Group = 64
    symmetric: bool = True
    act_order: bool = False
    damp: float = 0.01
    rows: int = 512

    def __post_init__(self) -> None:
        as_declared(self)
        check_grid(self.grid, bits=(2, 3, 4, 8))
        if not 0 < self.damp < 10 or self.rows < 1:
            raise InputError(
                f"damp={self.damp}, rows={self.rows}", expected="a damping between 0 and 10, and at least one row",
                remedy="correct the recipe",
            )  # fmt: skip

    @property
    def grid(self) -> GridSpec:
        return GridSpec(self.bits, self.group, self.symmetric)

    @property
    def label(self) -> str:
        return f"gptq {self.grid.label}" + " by inputs" * self.act_order


@torch.no_grad()
def quantize_gptq(model: Any, config: GptqConfig, calibration: Calibration) -> Any:
    """The wrapper with its matrices on the grid, layer by layer on the inputs that the layers below give by then.

    Costs two forward passes a row and one inverse for each of a layer's four inputs. Raises Rejected for a family
    without an adapter, or inputs that are not numbers.
    """
    for groups in layer_by_layer(model, calibration, rows=config.rows, full=True, kind=config.kind):
        for matrices, moment in groups:
            order = moment.diagonal().argsort(descending=True, stable=True) if config.act_order else None
            seen = moment if order is None else moment[order][:, order]
            factor = inverse_factor(seen, damp=config.damp, kind=config.kind)
            for matrix in matrices:
                weight = matrix.linear.weight
                weight.copy_(answered(weight, factor, spec=config.grid, order=order))
    return model


def answered(weight: Tensor, factor: Tensor, *, spec: GridSpec, order: Tensor | None = None) -> Tensor:
    """``weight`` [O, I] on its grid, in its own type; ``factor`` [I, I] belongs to the inputs in this ``order`` [I]."""
    whole = weight.double()
    rule = _Nearest(whole, spec, order)
    found = column_by_column(whole if order is None else whole[:, order], factor, rule=rule, block=_BLOCK)
    if order is not None:
        found = found[:, order.argsort()]
    return found.to(weight.dtype)


class _Nearest:
    """The rule: each column takes the nearest points of its group's grid."""

    def __init__(self, weight: Tensor, spec: GridSpec, order: Tensor | None) -> None:
        self.spec, self.order = spec, order
        self.size = spec.group or weight.shape[1]
        self.fixed = None if order is None and spec.group else fitted(weight, spec)
        self.own: Grid | None = None

    def __call__(self, w: Tensor, column: int) -> Tensor:
        if self.fixed is not None:
            place = column if self.order is None else int(self.order[column])
            return self.fixed.column(w[:, column], place // self.size)
        if self.own is None or column % self.size == 0:
            self.own = fitted(w[:, column : column + self.size], self.spec)
        return self.own.column(w[:, column], 0)
