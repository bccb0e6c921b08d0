"""The weights that the loss would miss least become zero, by the first term of its Taylor series.

Takes a wrapper and a share of zeros, gives the wrapper with that many zeros in its encoder's matrices.

Source: Molchanov et al. 2017, "Pruning Convolutional Neural Networks for Resource Efficient Inference", for single
weights: |L(w) - L(0)| ~ |w dL/dw|. The size is taken minibatch by minibatch and then averaged: in a trained model the
gradients of all rows together are close to zero, and without labels their sign is a coin's.

Legend: B rows, O outputs, I inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hasten.passes.calibration import Calibration, task_loss
from hasten.passes.matrices import Matrix, encoder_matrices
from hasten.passes.settings import as_declared
from hasten.passes.sparsity import Scope, amount, apply_masks, check_pattern, check_sparsity, masks_of, tell_zeros
from hasten.records import InputError


@dataclass(frozen=True, slots=True)
class TaylorConfig:
    """As in magnitude sparsity, with gradients over ``rows`` rows, ``batch`` at a time: smaller batches tell rows apart
    and take longer."""

    kind: ClassVar[str] = "taylor"
    sparsity: float = 0.5
    pattern: str | None = None
    scope: Scope = "global"
    rows: int = 512
    batch: int = 8

    def __post_init__(self) -> None:
        as_declared(self)
        check_sparsity(sparsity=self.sparsity, pattern=self.pattern, scope=self.scope, rows=self.rows)
        if self.batch < 1:
            raise InputError(f"batch={self.batch}", expected="at least 1", remedy="correct the recipe")

    @property
    def label(self) -> str:
        return f"taylor {amount(sparsity=self.sparsity, pattern=self.pattern)} zeros"


def prune_taylor(model: Any, config: TaylorConfig, calibration: Calibration) -> Any:
    """The wrapper without the weights of the least |w dL/dw|: about three forward passes a row, and twice the memory of
    the encoder's weights.

    Raises Rejected for a family without an adapter, or a pattern that does not fit the matrices.
    """
    matrices = encoder_matrices(model, what="Taylor sparsity")
    check_pattern(matrices, config.pattern, kind=config.kind)
    scores = weight_scores(model, matrices, calibration, rows=config.rows, batch=config.batch)
    apply_masks(matrices, masks_of(scores, sparsity=config.sparsity, pattern=config.pattern, scope=config.scope))
    tell_zeros(matrices, calibration, kind=config.kind)
    return model


def weight_scores(
    model: Any, matrices: Sequence[Matrix], calibration: Calibration, *, rows: int, batch: int
) -> list[Tensor]:
    """Sum over minibatches of |w dL/dw| [O, I] for every matrix; gradients are left in no parameter."""
    generator = torch.Generator().manual_seed(calibration.seed)
    weights = [matrix.linear.weight for matrix in matrices]
    asked = [weight.requires_grad for weight in weights]
    sums = [torch.zeros_like(weight) for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        for inputs, targets in calibration.batches(batch=batch, limit=rows):
            with torch.enable_grad():
                loss = task_loss(model, model(**inputs), targets, batch=inputs, generator=generator)
                # No token of the batch may have gone to some of the experts.
                gradients = torch.autograd.grad(loss, weights, allow_unused=True)
            for total, gradient, weight in zip(sums, gradients, weights, strict=True):
                if gradient is not None:
                    total += (gradient * weight.detach()).abs()
    finally:
        for weight, before in zip(weights, asked, strict=True):
            weight.requires_grad_(before)
    return sums
