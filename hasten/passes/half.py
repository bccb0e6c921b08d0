"""Weights in 16 bits where the outputs hardly notice, in 32 where they do.

Takes a wrapper, gives it back with the weights of its chosen parts rounded to bf16 or fp16. ``save_model`` stores them
in 16 bits (:mod:`hasten.models.half_store`); in memory and in kernels they are fp32, so this is about size alone. A
runtime that computes in bf16 is a choice of runtime, not of this pass.

Source: per-layer choice by measured sensitivity as in :mod:`hasten.passes.sensitivity`; bf16 for Transformers:
Kalamkar et al. 2019, "A Study of BFLOAT16 for Deep Learning Training".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from hasten.passes.calibration import Calibration, Progress
from hasten.passes.family import adapter_of
from hasten.passes.sensitivity import Trial, check_bound, kept_by_list
from hasten.passes.settings import as_declared
from hasten.records import Rejected

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class HalfConfig:
    """``bound`` on the loss of all rounded parts together (nats, or relative squared error of embeddings);
    ``embeddings``: the embedding tables too."""

    kind: ClassVar[str] = "half"
    dtype: Literal["bf16", "fp16"] = "bf16"
    bound: float = 1e-3
    embeddings: bool = True
    rows: int = 128

    def __post_init__(self) -> None:
        as_declared(self)
        check_bound(self.bound, self.rows)

    @property
    def label(self) -> str:
        return f"{self.dtype} weights, loss <= {self.bound:.3g}"


def round_to_half(model: Any, config: HalfConfig, calibration: Calibration) -> Any:
    """The wrapper with as many parts in 16 bits as the bound allows; a forward pass a row for each part.

    Raises Rejected for a family without an adapter, or when no part can be rounded within the bound.
    """
    dtype = _TYPES[config.dtype]
    trial = Trial(model, calibration, rows=config.rows, numbers=partial(in_half, dtype=dtype), what="16-bit weights")
    alone = trial.sensitivities()
    tables_loss = 0.0
    if config.embeddings:  # first, so that the joint loss counts them
        for table in adapter_of(model, what="16-bit weights").embeddings(model.hf).modules():
            if isinstance(table, nn.Embedding):
                table.weight.data = rounded(table.weight.detach(), dtype)  # one with the tied output matrix
        tables_loss = trial.loss([])
    if tables_loss > config.bound:
        raise Rejected(
            config.kind, f"the embedding tables alone lose {tables_loss:.3g}, and {config.bound:g} is allowed; set "
            "embeddings=False",
        )  # fmt: skip
    kept = kept_by_list(trial, alone, bound=config.bound, kind=config.kind)
    for number, part in enumerate(trial.parts):
        for matrix in part.matrices if number not in kept else ():
            matrix.linear.weight = nn.Parameter(rounded(matrix.linear.weight.detach(), dtype))
    stays = ", ".join(trial.parts[i].name for i in sorted(kept)) or "nothing"
    calibration.listen(Progress(f"16-bit weights: {stays} stays fp32", 1, 1, note=True))
    return model


def rounded(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest values of ``dtype``, as fp32; larger than fp16 can say becomes its largest."""
    largest = torch.finfo(dtype).max
    return weight.clamp(-largest, largest).to(dtype).float()


@contextmanager
def in_half(linears: Sequence[nn.Linear], *, dtype: torch.dtype) -> Iterator[None]:
    """Within, these matrices are rounded."""
    before = [linear.weight for linear in linears]
    try:
        for linear in linears:
            linear.weight = nn.Parameter(rounded(linear.weight.detach(), dtype))
        yield
    finally:
        for linear, weight in zip(linears, before, strict=True):
            linear.weight = weight
