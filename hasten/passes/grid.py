"""Matrices on integer grids: how far apart the points lie, which one is nearest, how much of the range to give up.

Takes matrices [O, I], gives them rounded: (q - z) s with whole q and z and a step s for every group of consecutive
inputs of a row (or for the row). Symmetric: q from -(2^(b-1) - 1) to 2^(b-1) - 1 and z = 0. With zero points: q and z
from 0 to 2^b - 1, and zero is always on the grid.

Steps have the 11 significant bits of fp16, so a step times an integer of 8 bits is exact in fp32: the weights say
themselves what grid they lie on, and :mod:`hasten.models.grid_store` stores them so. A symmetric group that reaches the
end of its range says so to a runtime, too, which takes its step from the largest weight.

Source: the two grids are those of Jacob et al. 2018; ranges found by search as in Lin et al. 2023, "AWQ".

Legend: O outputs, I inputs of a matrix, G groups of a row, S inputs of a group; the last group may be shorter.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from hasten.records import InputError

Group = Literal[32, 64, 128] | None
GROUPS: tuple[Group, ...] = (32, 64, 128, None)
# Shares of a group's range that are tried, in the order in which equal ones are taken.
_SHARES = tuple(1 - step / 20 for step in range(11))
# Within this range fp16 is precise enough for a matrix; outside it, steps are fp32 with as few digits.
_FP16 = (2.0**-14, 65504.0)
_SPLIT = 2.0**13 + 1  # leaves the upper 11 of fp32's 24 bits


@dataclass(frozen=True, slots=True)
class GridSpec:
    """``bits`` of a weight; ``group`` inputs share a step (``None``: a whole row); ``symmetric``, or zero points."""

    bits: int
    group: int | None = None
    symmetric: bool = True

    @property
    def lowest(self) -> int:
        """The smallest q."""
        return -self.highest if self.symmetric else 0

    @property
    def highest(self) -> int:
        """The largest q."""
        codes: int = 1 << (self.bits - 1 if self.symmetric else self.bits)
        return codes - 1

    @property
    def label(self) -> str:
        """For labels: ``"w4g64"``."""
        return f"w{self.bits}" + (f"g{self.group}" if self.group else " rows") + " with zeros" * (not self.symmetric)


@dataclass(frozen=True, slots=True)
class Grid:
    """Where a matrix's weights may lie: ``steps`` and whole ``zeros`` [O, G]; no zeros where it is symmetric."""

    spec: GridSpec
    steps: Tensor
    zeros: Tensor | None = None

    def nearest(self, weight: Tensor) -> Tensor:
        """``weight`` [O, I] on the grid."""
        zeros = None if self.zeros is None else self.zeros[..., None]
        found = _rounded(grouped(weight, self.spec.group), self.steps[..., None], zeros, self.spec)
        return found.flatten(start_dim=1)[:, : weight.shape[1]]

    def column(self, values: Tensor, group: int) -> Tensor:
        """``values`` [O] of one column of this group, on the grid."""
        zeros = None if self.zeros is None else self.zeros[:, group]
        return _rounded(values, self.steps[:, group], zeros, self.spec)


def check_grid(spec: GridSpec, *, bits: Collection[int]) -> None:
    """Raise InputError for other ``bits`` or another group than there are."""
    if spec.bits not in bits or spec.group not in GROUPS:
        raise InputError(
            f"bits={spec.bits}, group={spec.group}",
            expected=f"{', '.join(map(str, bits))} bits in groups of 32, 64 or 128, or with a step for every row",
            remedy="correct the recipe",
        )


def fitted(weight: Tensor, spec: GridSpec, *, share: float | Tensor = 1.0) -> Grid:
    """The grid that reaches over each group's weights, or over a ``share`` (one, or one a group [O, G]) of them."""
    parts = grouped(weight, spec.group)
    if spec.symmetric:
        return Grid(spec, short(parts.abs().amax(dim=-1) * share / spec.highest))
    low = parts.amin(dim=-1).clamp(max=0.0) * share
    high = parts.amax(dim=-1).clamp(min=0.0) * share
    steps = short((high - low) / spec.highest)
    zeros = (-low / torch.where(steps > 0, steps, 1.0)).round().clamp(0, spec.highest)
    return Grid(spec, steps, zeros)


def clipped(weight: Tensor, spec: GridSpec, *, moment: Tensor | None = None) -> Grid:
    """The grid whose groups each reach as far as is best for them: over all of their weights, down to half as far.

    Best is what moves the group's part of the outputs least, with ``moment`` X^T X [I, I] of the inputs; without it,
    what moves the weights least (squared error).
    """
    blocks = None if moment is None else _diagonal_blocks(moment.double(), spec.group)
    best, least = torch.ones(()), torch.full((), torch.inf)
    for share in _SHARES:
        moved = grouped(weight - fitted(weight, spec, share=share).nearest(weight), spec.group).double()
        # [G, O, S] @ [G, S, S]
        seen = moved if blocks is None else (moved.transpose(0, 1) @ blocks).transpose(0, 1)
        errors = (seen * moved).sum(dim=-1)
        best, least = torch.where(errors < least, share, best), torch.minimum(errors, least)
    return fitted(weight, spec, share=best.to(weight.dtype))


def output_error(weight: Tensor, found: Tensor, moment: Tensor) -> float:
    """Mean squared change of the outputs, summed over them; weight and found [O, I], moment X^T X / T [I, I]."""
    moved = (weight - found).double()
    return float(((moved @ moment.double()) * moved).sum().detach())


def short(numbers: Tensor) -> Tensor:
    """``numbers`` with the 11 significant bits that fp16 has, and in fp16's range if the largest of them is."""
    largest = float(numbers.detach().abs().max())
    if _FP16[0] <= largest <= _FP16[1]:
        return numbers.half().to(numbers.dtype)
    scaled = numbers.float() * _SPLIT
    return (scaled - (scaled - numbers.float())).to(numbers.dtype)


def grouped(weight: Tensor, group: int | None) -> Tensor:
    """[O, I] -> [O, G, S], the last group filled with zeros, which change no largest weight."""
    size = group or weight.shape[1]
    padded: Tensor = nn.functional.pad(weight, (0, -weight.shape[1] % size))
    return padded.reshape(len(weight), -1, size)


def _rounded(values: Tensor, steps: Tensor, zeros: Tensor | None, spec: GridSpec) -> Tensor:
    codes = (values / torch.where(steps > 0, steps, 1.0)).round()
    if zeros is None:
        codes = codes.clamp(spec.lowest, spec.highest)
    else:
        codes = (codes + zeros).clamp(spec.lowest, spec.highest) - zeros
    return codes * steps + 0.0  # the zero of a grid has no sign


def _diagonal_blocks(moment: Tensor, group: int | None) -> Tensor:
    """[I, I] -> [G, S, S]: what the inputs of a group have to do with each other."""
    size = group or len(moment)
    rest = -len(moment) % size
    padded = nn.functional.pad(moment, (0, rest, 0, rest))
    whole = padded.view(len(padded) // size, size, -1, size)
    return whole.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
