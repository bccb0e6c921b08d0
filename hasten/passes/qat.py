"""Quantization-aware training: the model learns while its products are computed on the integer grid.

Takes a wrapper, gives it back with weights that lie on the grid that a runtime's quantizer will find again. It learns
from the original model as in :mod:`hasten.passes.distillation`, so labels are not needed.

Source: Jacob et al. 2018, with straight-through gradients; on BERT Zafrir et al. 2019 ("Q8BERT"). Weights are rounded
per output row (int8) or per group of inputs (int4), inputs to 8 bits with a range found at run time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.nn.utils import parametrize

from hasten.passes.calibration import Calibration
from hasten.passes.distillation import DistillConfig, distill, epochs_text
from hasten.passes.fake_quant import Range, round_weight, rounding_inputs, straight_through
from hasten.passes.hooks import hooked
from hasten.passes.matrices import encoder_matrices
from hasten.passes.settings import as_declared
from hasten.records import InputError


@dataclass(frozen=True, slots=True)
class QatConfig:
    """``bits`` of the weights; 4 needs a ``group``. ``activations``: the range that a runtime takes, per row of a
    request (``"tensor"``, ONNX Runtime's dynamic int8 at batch 1) or per ``"token"``; ``None`` leaves them alone."""

    kind: ClassVar[str] = "qat"
    bits: Literal[8, 4] = 8
    group: Literal[32, 64, 128] | None = None
    activations: Range | None = "tensor"
    epochs: float = 2.0
    batch: int = 32
    lr: float = 5e-5

    def __post_init__(self) -> None:
        as_declared(self)
        if (self.bits == 4) != (self.group is not None):
            raise InputError(
                f"bits={self.bits} with group={self.group}",
                expected="8 bits per output row, or 4 bits in groups of 32, 64 or 128",
                remedy="correct the recipe",
            )
        self.lesson()

    def lesson(self) -> DistillConfig:
        """How it learns."""
        return DistillConfig(epochs=self.epochs, batch=self.batch, lr=self.lr)

    @property
    def label(self) -> str:
        return f"int{self.bits} trained {epochs_text(self.epochs)}"


def train_quantized(model: Any, config: QatConfig, calibration: Calibration) -> Any:
    """The wrapper whose encoder weights are on the grid and know it; costs what ``distill`` does, and a quarter more.

    Raises Rejected as ``distill`` does, and for a layer that holds no plain matrices.
    """
    linears = [m.linear for m in encoder_matrices(model, what="quantization-aware training")]
    with _on_the_grid(linears, config):
        distill(model, config.lesson(), calibration)
    return model


@contextmanager
def _on_the_grid(linears: Sequence[nn.Linear], config: QatConfig) -> Iterator[None]:
    """Within, weights and inputs are rounded in every forward pass; after it, the rounded weights stay."""
    per = config.activations
    hooks = () if per is None else (linear.register_forward_pre_hook(rounding_inputs(per)) for linear in linears)
    try:
        for linear in linears:
            parametrize.register_parametrization(linear, "weight", _Rounded(config.bits, config.group))
        with hooked(hooks):
            yield
    finally:
        for linear in linears:
            if parametrize.is_parametrized(linear, "weight"):
                parametrize.remove_parametrizations(linear, "weight", leave_parametrized=True)


class _Rounded(nn.Module):
    """The weight on its grid; gradients go straight through to the weight itself."""

    def __init__(self, bits: int, group: int | None) -> None:
        super().__init__()
        self.bits, self.group = bits, group

    def forward(self, weight: Tensor) -> Tensor:
        return straight_through(weight, round_weight(weight.detach(), bits=self.bits, group=self.group))
