"""Offsets of a group's grid such that few weights are far off, rather than all a little: no data needed.

Takes a wrapper, gives the wrapper with fp32 weights q s + m, which ``save_model`` stores as packed codes, scales and
offsets (:mod:`hasten.models.grid_store`).

Source: Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models". The error's p-norm with
p = 0.7 is split off as E and solved for in turns: E = shrink_p(W - W_q, beta) with
shrink_p(x) = sign(x) max(|x| - |x|^(p-1) / beta, 0), then the zero point z = mean(q - (W - E) / s); beta grows from 10
by 1% a round, twenty rounds. Steps stay those of the group's range.

Two differences. The error is measured in steps, so that beta means the same for matrices of every size (in plain
weights of common sizes the shrinking would never leave anything). And every group keeps the best of its rounds, the
first among them, which is plain rounding. The offset m = -z s has fp16's digits as steps have, both are multiples of a
small unit so that q s + m is exact in fp32, and a group's lowest code is 0: so the grid can be seen in the weights.

Legend: O outputs, I inputs of a matrix, G groups of a row, S inputs of a group; the last group may be shorter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from hasten.passes.calibration import Calibration, Progress
from hasten.passes.grid import GridSpec, Group, check_grid, grouped, short
from hasten.passes.settings import as_declared
from hasten.passes.tables import plain_weights
from hasten.records import InputError

_NORM = 0.7
_BETA, _GROWTH = 10.0, 1.01


@dataclass(frozen=True, slots=True)
class HqqConfig:
    """``bits`` of a weight; ``group`` inputs share a step and an offset (``None``: a whole row); ``rounds`` of the
    search, 0 for rounding alone; ``embeddings``: the embedding tables too."""

    kind: ClassVar[str] = "hqq"
    bits: Literal[2, 3, 4, 8] = 4
    group: Group = 64
    rounds: int = 20
    embeddings: bool = False

    def __post_init__(self) -> None:
        as_declared(self)
        check_grid(GridSpec(self.bits, self.group), bits=(2, 3, 4, 8))
        if self.rounds < 0:
            raise InputError(f"rounds={self.rounds}", expected="0 or more of them", remedy="correct the recipe")

    @property
    def label(self) -> str:
        return f"hqq {GridSpec(self.bits, self.group).label}" + " all" * self.embeddings


@torch.no_grad()
def quantize_hqq(model: Any, config: HqqConfig, calibration: Calibration) -> Any:
    """The wrapper with its matrices on the grid: seconds, and no data. Raises Rejected for a family without an
    adapter."""
    weights = plain_weights(model, embeddings=config.embeddings, what="HQQ")
    for number, weight in enumerate(weights):
        calibration.listen(Progress("hqq: matrix by matrix", number, len(weights)))
        weight.copy_(half_quadratic(weight, bits=config.bits, group=config.group, rounds=config.rounds))
    return model


def half_quadratic(weight: Tensor, *, bits: int, group: int | None, rounds: int) -> Tensor:
    """``weight`` [O, I] on its grid."""
    parts = _Parts(weight, bits=bits, group=group)
    offsets = parts.low
    best, least = parts.rounded(offsets)
    beta = _BETA
    for _ in range(rounds):
        offsets = parts.better(offsets, beta=beta)
        found, error = parts.rounded(offsets)
        best = torch.where((error < least)[..., None], found, best)
        least = torch.minimum(error, least)
        beta *= _GROWTH
    return best.flatten(start_dim=1)[:, : weight.shape[1]]


class _Parts:
    """A matrix in groups [O, G, S], its steps and lowest weights [O, G]."""

    def __init__(self, weight: Tensor, *, bits: int, group: int | None) -> None:
        self.highest = 2**bits - 1
        self.values = grouped(weight, group)
        self.real = grouped(torch.ones_like(weight[:1]), group).bool()  # [1, G, S]: what is not padding
        self.low = self.values.masked_fill(~self.real, torch.inf).amin(dim=-1)
        high = self.values.masked_fill(~self.real, -torch.inf).amax(dim=-1)
        self.bounds = 4 * short(torch.maximum(high.abs(), self.low.abs()))
        self.steps = self._exact((high - self.low) / self.highest)
        self.divisors = torch.where(self.steps > 0, self.steps, 1.0)[..., None]

    def codes(self, offsets: Tensor) -> Tensor:
        """Whole numbers [O, G, S] of the nearest points on grids that begin at ``offsets`` [O, G]."""
        return ((self.values - offsets[..., None]) / self.divisors).round().clamp(0, self.highest)

    def better(self, offsets: Tensor, *, beta: float) -> Tensor:
        """Offsets [O, G] after one round."""
        distances = (self.values - offsets[..., None]) / self.divisors - self.codes(offsets)
        kept = (distances - shrunk(distances, beta=beta)) * self.real
        return offsets + kept.sum(dim=-1) / self.real.sum(dim=-1) * self.steps

    def rounded(self, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """The weights [O, G, S] on the grids as they can be stored, and what that loses: sum |error|^p [O, G]."""
        codes = self.codes(offsets)
        lowest = codes.masked_fill(~self.real, torch.inf).amin(dim=-1)
        begin = self._exact(offsets + lowest * self.steps)
        found = (codes - lowest[..., None]) * self.steps[..., None] + begin[..., None]
        return found, ((self.values - found).abs().pow(_NORM) * self.real).sum(dim=-1)

    def _exact(self, numbers: Tensor) -> Tensor:
        """Short numbers [O, G], to a multiple of what fp32 can say at four times the group's largest weight: sums of
        such multiples that are no larger than that weight are exact."""
        return (short(numbers) + self.bounds) - self.bounds


def shrunk(distances: Tensor, *, beta: float) -> Tensor:
    """shrink_p of each: what is so large that it counts as an error of its own, and else 0."""
    sizes = distances.abs()
    return distances.sign() * (sizes - sizes.pow(_NORM - 1) / beta).clamp(min=0.0)
