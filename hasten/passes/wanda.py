"""The weights become zero that move their output least on the user's data: size of the weight times size of its input.

Takes a wrapper and a share of zeros, gives the wrapper with that many zeros in each output row of its matrices. No
gradients, no inverse, and what stays keeps its value.

Source: Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language Models" (Wanda):
score |W_ij| ||X_j||_2, compared within an output row.
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
    apply_masks,
    check_pattern,
    check_sparsity,
    layer_by_layer,
    masks_of,
    tell_zeros,
)


@dataclass(frozen=True, slots=True)
class WandaConfig:
    """``sparsity`` is the share of zeros in each output row; a ``pattern`` such as ``"2:4"`` keeps 2 of every 4 inputs
    instead, and must agree with the share. ``rows`` rows say how large inputs are."""

    kind: ClassVar[str] = "wanda"
    sparsity: float = 0.5
    pattern: str | None = None
    rows: int = 128

    def __post_init__(self) -> None:
        as_declared(self)
        check_sparsity(sparsity=self.sparsity, pattern=self.pattern, rows=self.rows)

    @property
    def label(self) -> str:
        return f"wanda {amount(sparsity=self.sparsity, pattern=self.pattern)} zeros"


def prune_wanda(model: Any, config: WandaConfig, calibration: Calibration) -> Any:
    """The wrapper with zeros, layer by layer on the inputs that the layers below give by then.

    Costs two forward passes a row. Raises Rejected for a family without an adapter, or a pattern that does
    not fit the matrices.
    """
    matrices = encoder_matrices(model, what="Wanda sparsity")
    check_pattern(matrices, config.pattern, kind=config.kind)
    for groups in layer_by_layer(model, calibration, rows=config.rows, full=False, kind=config.kind):
        for group, squares in groups:
            scores = [weight_scores(matrix.linear.weight, squares) for matrix in group]
            apply_masks(group, masks_of(scores, sparsity=config.sparsity, pattern=config.pattern, scope="row"))
    tell_zeros(matrices, calibration, kind=config.kind)
    return model


@torch.no_grad()
def weight_scores(weight: Tensor, squares: Tensor) -> Tensor:
    """|W_ij| times the root of input j's mean square; weight [O, I], squares [I]. |W_ij| alone where no input was ever
    seen, as of an expert that no token went to."""
    return weight.abs() * squares.sqrt().to(weight.dtype) if bool(squares.any()) else weight.abs()
