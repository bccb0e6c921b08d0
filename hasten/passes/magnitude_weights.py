"""The smallest weights become zero: needs no data, and knows nothing of the task.

Takes a wrapper and a share of zeros, gives the wrapper with that many zeros in its encoder's matrices.

Source: Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks", without the training
that goes with it there. The baseline that every other choice of weights has to beat.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from hasten.passes.calibration import Calibration
from hasten.passes.matrices import encoder_matrices
from hasten.passes.settings import as_declared
from hasten.passes.sparsity import Scope, amount, apply_masks, check_pattern, check_sparsity, masks_of, tell_zeros


@dataclass(frozen=True, slots=True)
class MagnitudeConfig:
    """``sparsity`` is the share of zeros over all matrices (``"global"``), in each (``"matrix"``) or in each output row
    (``"row"``); a ``pattern`` such as ``"2:4"`` keeps 2 of every 4 inputs instead, and must agree with the share."""

    kind: ClassVar[str] = "magnitude"
    sparsity: float = 0.5
    pattern: str | None = None
    scope: Scope = "global"

    def __post_init__(self) -> None:
        as_declared(self)
        check_sparsity(sparsity=self.sparsity, pattern=self.pattern, scope=self.scope)

    @property
    def label(self) -> str:
        return f"magnitude {amount(sparsity=self.sparsity, pattern=self.pattern)} zeros"


def prune_magnitude(model: Any, config: MagnitudeConfig, calibration: Calibration) -> Any:
    """The wrapper without its smallest weights. Takes seconds.

    Raises Rejected for a family without an adapter, or a pattern that does not fit the matrices.
    """
    matrices = encoder_matrices(model, what="magnitude sparsity")
    check_pattern(matrices, config.pattern, kind=config.kind)
    scores = [matrix.linear.weight.detach().abs() for matrix in matrices]
    apply_masks(matrices, masks_of(scores, sparsity=config.sparsity, pattern=config.pattern, scope=config.scope))
    tell_zeros(matrices, calibration, kind=config.kind)
    return model
