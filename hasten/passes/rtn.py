"""Every weight to the nearest point of its group's grid: no data, no answer from its neighbours.

Takes a wrapper, gives the wrapper with fp32 weights on an integer grid, which ``save_model`` stores as packed codes and
scales (:mod:`hasten.models.grid_store`). In memory and in every kernel they are fp32 as before.

Source: round to nearest, the baseline of Dettmers and Zettlemoyer 2023, "The case for 4-bit precision", and of every
paper on weights in few bits. With ``clip`` each group gives up the part of its range that makes its squared error
smallest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from hasten.passes.calibration import Calibration, Progress
from hasten.passes.grid import GridSpec, Group, check_grid, clipped, fitted
from hasten.passes.settings import as_declared
from hasten.passes.tables import plain_weights


@dataclass(frozen=True, slots=True)
class RtnConfig:
    """``bits`` of a weight; ``group`` inputs share a step (``None``: a whole row), ``symmetric`` or with a zero point.
    ``clip``: the range by search; ``embeddings``: the embedding tables too, often half of a small model's bytes."""

    kind: ClassVar[str] = "rtn"
    bits: Literal[2, 3, 4, 5, 6, 7, 8] = 4
    group: Group = 64
    symmetric: bool = True
    clip: bool = False
    embeddings: bool = False

    def __post_init__(self) -> None:
        as_declared(self)
        check_grid(self.grid, bits=range(2, 9))

    @property
    def grid(self) -> GridSpec:
        return GridSpec(self.bits, self.group, self.symmetric)

    @property
    def label(self) -> str:
        return f"rtn {self.grid.label}" + " clipped" * self.clip + " all" * self.embeddings


@torch.no_grad()
def quantize_rtn(model: Any, config: RtnConfig, calibration: Calibration) -> Any:
    """The wrapper with its matrices on the grid: seconds, and no data. Raises Rejected for a family without an
    adapter."""
    weights = plain_weights(model, embeddings=config.embeddings, what="RTN")
    for number, weight in enumerate(weights):
        calibration.listen(Progress("rtn: matrix by matrix", number, len(weights)))
        weight.copy_(rounded(weight, config.grid, clip=config.clip))
    return model


def rounded(weight: Tensor, spec: GridSpec, *, clip: bool = False) -> Tensor:
    """``weight`` [O, I] on its nearest points."""
    return (clipped(weight, spec) if clip else fitted(weight, spec)).nearest(weight)
