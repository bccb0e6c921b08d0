"""Weights in int8, but for the input channels that carry outliers: their weights stay in fp16.

Takes a wrapper, gives the wrapper with fp32 weights: int8 times a step for every output row, and untouched up to fp16
in the columns whose inputs are large on the user's rows. ``save_model`` stores them so
(:mod:`hasten.models.grid_store`).
Inputs are not rounded by this pass, and no kernel multiplies in int8.

Source: Dettmers et al. 2022, "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale": row-wise absmax, and
the dimensions in which some activation reaches 6.0 in 16 bits. There the dimensions are found anew for every request;
here once, on the calibration rows. Steps have fp16's digits, and outlier columns do not widen a row's range.

Legend: O outputs, I inputs of a matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hasten.passes.calibration import Calibration, Progress
from hasten.passes.grid import GridSpec, fitted
from hasten.passes.half import rounded
from hasten.passes.matrices import encoder_matrices
from hasten.passes.settings import as_declared
from hasten.passes.smooth_quant import input_maxima
from hasten.passes.surgeon import check_inputs
from hasten.passes.units import batches_of
from hasten.records import InputError

_INT8 = GridSpec(bits=8)


@dataclass(frozen=True, slots=True)
class LlmInt8Config:
    """An input channel with a magnitude of ``threshold`` or more on any of ``rows`` rows is an outlier."""

    kind: ClassVar[str] = "llm_int8"
    threshold: float = 6.0
    rows: int = 256

    def __post_init__(self) -> None:
        as_declared(self)
        if not 0 < self.threshold < float("inf") or self.rows < 1:
            raise InputError(
                f"threshold={self.threshold}, rows={self.rows}",
                expected="a magnitude above 0 and at least one row", remedy="correct the recipe",
            )  # fmt: skip

    @property
    def label(self) -> str:
        return f"LLM.int8() from {self.threshold:g}"


def quantize_llm_int8(model: Any, config: LlmInt8Config, calibration: Calibration) -> Any:
    """The wrapper with its matrices in int8 and outlier columns in fp16: a forward pass a row.

    Raises Rejected for a family without an adapter, or inputs that are not numbers.
    """
    matrices = encoder_matrices(model, what="LLM.int8()")
    linears = [matrix.linear for matrix in matrices]
    largest = input_maxima(model, linears, batches_of(calibration, rows=config.rows))
    outliers = [inputs >= config.threshold for inputs in largest]
    for linear, inputs, away in zip(linears, largest, outliers, strict=True):
        check_inputs(inputs, kind=config.kind)
        with torch.no_grad():
            linear.weight.copy_(in_int8(linear.weight, away))
    share = 100 * float(torch.cat(outliers).double().mean())
    calibration.listen(Progress(f"LLM.int8(): {share:.2f}% of the input channels stay in fp16", 1, 1, note=True))
    return model


def in_int8(weight: Tensor, outliers: Tensor) -> Tensor:
    """``weight`` [O, I] in int8 with a step for each row, but for the columns ``outliers`` (true [I]) in fp16."""
    rest = weight.masked_fill(outliers, 0.0)
    return torch.where(outliers, rounded(weight, torch.float16), fitted(rest, _INT8).nearest(rest))
