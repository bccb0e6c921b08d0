"""Matrices of 4 or 5 bits in groups, with steps and offsets that are searched for.

Takes fp32 matrices [N, K], gives tensors of the flat program. Each group of a row gets the step and the offset with the
least squares of what is lost, among the outermost weights' range and some narrower ones, ranges around zero, and what
is best for the codes so found. A matrix that already lies on such a grid, as one from a file of few bits does, is found
again exactly.

Legend: N outputs, K inputs, G groups of a row, S inputs of a group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor as Matrix
from torch import nn

from hasten.native.tensors import Int4, Int5
from hasten.passes.grid import grouped

Bits = Literal[4, 5]
# Of a group's range, the least that is tried.
_SHARES = (1.0, 0.94, 0.88, 0.82, 0.76)
_ROUNDS = 2
# Weights that are looked at together: what is made of them stays in the last cache.
_TOGETHER = 1 << 20
Array = np.ndarray[Any, Any]


def searched(weight: Matrix, *, bits: Bits, group: int) -> Int4 | Int5:
    """``weight`` [N, K] in codes of so many bits, ``group`` inputs to a step and an offset."""
    rows = max(1, _TOGETHER // max(1, weight.shape[1]))
    # A short last group repeats its last weight: zeros would count as weights.
    padded = nn.functional.pad(weight[None], (0, -weight.shape[1] % group), mode="replicate")[0]
    found = [_search(grouped(part, group), bits=bits) for part in torch.split(padded, rows)]
    codes = torch.cat([one.codes.flatten(start_dim=1) for one in found])[:, : weight.shape[1]].to(torch.uint8).numpy()
    steps, offsets = torch.cat([one.steps for one in found]), torch.cat([one.offsets for one in found])
    return in_codes(codes, steps.half().numpy(), offsets=offsets.half().numpy(), bits=bits, group=group)


def in_codes(codes: Array, scales: Array, *, offsets: Array | None, bits: Bits, group: int) -> Int4 | Int5:
    """Codes [N, K] as the engine holds them; ``offsets`` None: the middle of the codes stands for zero. Offsets that
    say just that are left out."""
    middle = 2 ** (bits - 1)
    if offsets is not None and np.array_equal(offsets.astype(np.float32), -middle * scales.astype(np.float32)):
        offsets = None
    if bits == 4:
        return Int4(pairs(codes), scales, None, codes.shape[1], group, offsets)
    fifths = np.packbits(codes >> 4, axis=1, bitorder="little")
    return Int5(pairs(codes & 15), fifths, scales, codes.shape[1], group, offsets)


def around_zero(codes: Array, scales: Array, zeros: Array, *, bits: Bits, group: int) -> Int4 | Int5 | None:
    """Codes [N, K] with zero points [N, G] of their own, told with the middle of so many bits for zero everywhere;
    ``None`` where they reach farther. Of the two ends the farther one is the lower: a group that reaches farther above
    zero has a negative step, as files have it."""
    middle = 2 ** (bits - 1)
    numbers = codes.astype(np.int16) - zeros.repeat(group, axis=1)[:, : codes.shape[1]].astype(np.int16)
    starts = np.arange(0, codes.shape[1], group)
    signs = np.where(np.maximum.reduceat(numbers, starts, axis=1) == middle, -1, 1).astype(np.int16)
    numbers = numbers * signs.repeat(group, axis=1)[:, : codes.shape[1]]
    if numbers.min() < -middle or numbers.max() >= middle:
        return None
    return in_codes((numbers + middle).astype(np.uint8), (scales * signs).astype(np.float16), offsets=None, bits=bits,
                    group=group)  # fmt: skip


def codes_of(tensor: Int4 | Int5) -> Array:
    """uint8 [N, K]."""
    both = np.stack([tensor.codes & 15, tensor.codes >> 4], axis=-1).reshape(len(tensor.codes), -1)
    found: Array = both[:, : tensor.columns]
    if isinstance(tensor, Int5):
        found = found | np.unpackbits(tensor.fifths, axis=1, bitorder="little")[:, : tensor.columns] << 4
    return found


def pairs(codes: Array) -> Array:
    """Codes [N, K] of 4 bits, two to a byte [N, ceil(K / 2)], the even column in the lower half."""
    even = np.pad(codes.astype(np.uint8), ((0, 0), (0, codes.shape[1] % 2)))
    found: Array = even[:, 0::2] | (even[:, 1::2] << 4)
    return found


@dataclass(frozen=True, slots=True)
class _Codes:
    """Codes [N, G, S]; steps and offsets (of fp16) and the squares of what is lost [N, G]."""

    codes: Matrix
    steps: Matrix
    offsets: Matrix
    lost: Matrix

    @staticmethod
    def of(parts: Matrix, steps: Matrix, offsets: Matrix, *, bits: Bits) -> _Codes:
        steps, offsets = steps.half().float(), offsets.half().float()
        safe = torch.where(steps != 0, steps, 1.0)[..., None]
        codes = ((parts - offsets[..., None]) / safe).round_().clamp_(0, 2**bits - 1)
        lost = (codes * steps[..., None] + offsets[..., None] - parts).square_().sum(dim=-1)
        return _Codes(codes, steps, offsets, lost)

    def or_better(self, other: _Codes) -> _Codes:
        better = other.lost < self.lost
        return _Codes(
            torch.where(better[..., None], other.codes, self.codes), torch.where(better, other.steps, self.steps),
            torch.where(better, other.offsets, self.offsets), torch.where(better, other.lost, self.lost),
        )  # fmt: skip


def _search(parts: Matrix, *, bits: Bits) -> _Codes:
    middle, most = 2 ** (bits - 1), 2**bits - 1
    low, high = parts.amin(dim=-1), parts.amax(dim=-1)
    far = torch.where(high > -low, high, low)  # of the two ends of the codes the farther one takes the largest weight
    plain = parts.abs().amax(dim=-1) / (middle - 1)
    best = _Codes.of(parts, plain, -middle * plain.half().float(), bits=bits)
    for share in _SHARES:
        around = (-share * far / middle).half().float()
        size = share * (high - low)
        for steps, offsets in ((around, -middle * around), (size / most, (low + high - size) / 2)):
            best = best.or_better(_Codes.of(parts, steps, offsets, bits=bits))
        if not best.lost.any():
            return best
    for _ in range(_ROUNDS):
        best = best.or_better(_Codes.of(parts, *_least_squares(parts, best.codes), bits=bits))
    return best


def _least_squares(parts: Matrix, codes: Matrix) -> tuple[Matrix, Matrix]:
    """The step and the offset that are best for these codes."""
    mean, own = codes.mean(dim=-1, keepdim=True), parts.mean(dim=-1, keepdim=True)
    squares = (codes - mean).square().sum(dim=-1)
    steps = ((codes - mean) * (parts - own)).sum(dim=-1) / torch.where(squares > 0, squares, 1.0)
    return steps, own[..., 0] - steps * mean[..., 0]
