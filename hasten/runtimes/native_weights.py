"""A model's matrices in the forms that the native engine multiplies with: int8 by row, int4 in groups, bf16, fp32.

Takes torch matrices [N, K], gives tensors of the flat program. A matrix that a pass has put on an integer grid keeps
exactly its integers and scales where one of the forms can hold them: a grid of up to 8 bits with a step for every row
through zero, or of up to 4 bits in groups with steps of fp16, with or without whole zero points. Groups of 8 bits,
offsets that are no whole number of steps and columns beside a grid have no form here, and are rounded as any matrix.

Rounding is that of training on the grid (:mod:`hasten.passes.fake_quant`): q = clip(round(w / s), -m, m) with
s = max|w| / m, m = 127 for 8 bits and 7 for 4, where s is rounded to fp16 first.

Legend: N outputs, K inputs, G groups of a row, S inputs of a group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor as Matrix

from hasten.models import grid_store
from hasten.models.bit_packing import unpack_bits
from hasten.native.tensors import Bf16, Floats, Int4, Int8, Tensor
from hasten.passes.grid import grouped

Precision = Literal["fp32", "bf16", "int8-dynamic", "int4"]
_ZERO = 8  # the code of zero where a form has no zero points
# Of a group's range, the least that is tried.
_SHARES = (0.7, 0.76, 0.82, 0.88, 0.94, 1.0)
_WHOLE_ROW = 128  # a row that shares a step is so many groups of the same
Array = np.ndarray[Any, Any]


def rounded(weight: Matrix, *, precision: Precision, group: int, fitted: bool = False) -> Tensor:
    """``weight`` [N, K] as this precision holds it; ``fitted``: in int4 with steps that are searched for."""
    weight = plain(weight)
    if precision == "fp32" or not weight.numel():
        return Floats(weight.numpy())
    if precision == "bf16":
        return Bf16(_bf16(weight))
    if precision == "int8-dynamic":
        return in_int8(weight)
    return fitted_int4(weight, group=group) if fitted else in_int4(weight, group=group)


def plain(weight: Matrix) -> Matrix:
    """In fp32, row by row in memory, without a history."""
    return weight.detach().float().contiguous()


def stored_table(weight: Matrix, *, int8: bool) -> Tensor:
    """A table [rows, K] of which rows are read: exactly what it says in as little room as it takes, or in int8."""
    weight = plain(weight)
    found = on_grid(weight)
    if found is not None:
        return found
    if int8:
        return in_int8(weight)
    short = weight.to(torch.bfloat16)
    return Bf16(_bf16(weight)) if torch.equal(short.float(), weight) else Floats(weight.numpy())


def on_grid(weight: Matrix) -> Int8 | Int4 | None:
    """The integers and scales that all of ``weight`` consists of; ``None`` where no form holds them exactly."""
    parts = grid_store.pack(weight)
    if parts is None or "columns" in parts or "offsets" in parts:
        return None
    rows, columns, bits, size = parts["layout"].tolist()
    codes = unpack_bits(parts["codes"], bits=bits, count=rows * columns).numpy().reshape(rows, columns)
    if size == columns and "zeros" not in parts:
        values = codes.astype(np.int16) - 2 ** (bits - 1)
        return Int8(values.astype(np.int8), parts["scales"].float().numpy())
    if bits > 4 or parts["scales"].dtype != torch.float16:
        return None
    shape = (rows, -(-columns // size))
    scales = parts["scales"].numpy().reshape(shape)
    if "zeros" in parts:
        zeros = unpack_bits(parts["zeros"], bits=bits, count=math.prod(shape)).numpy().reshape(shape)
    else:
        codes, zeros = codes + _ZERO - 2 ** (bits - 1), None
    if size == columns:
        count = -(-columns // _WHOLE_ROW)
        scales, size = scales.repeat(count, axis=1), _WHOLE_ROW
        zeros = None if zeros is None else zeros.repeat(count, axis=1)
    return Int4(_pairs(codes), scales, zeros, columns, size)


def in_int8(weight: Matrix) -> Int8:
    """Rounded with a step for every row."""
    steps = weight.abs().amax(dim=1) / 127
    codes = (weight / torch.where(steps > 0, steps, 1.0)[:, None]).round().clamp(-127, 127)
    return Int8(codes.to(torch.int8).numpy(), steps.numpy())


def in_int4(weight: Matrix, *, group: int) -> Int4:
    """Rounded with a step for every group of a row; a short last group has one too."""
    parts = grouped(weight, group)
    steps = (parts.abs().amax(dim=-1) / 7).half()
    safe = torch.where(steps > 0, steps, 1.0).float()[..., None]
    codes = (parts / safe).round().clamp(-7, 7).to(torch.int16) + _ZERO
    flat = codes.flatten(start_dim=1)[:, : weight.shape[1]].numpy()
    return Int4(_pairs(flat), steps.numpy(), None, weight.shape[1], group)


def fitted_int4(weight: Matrix, *, group: int) -> Int4:
    """Rounded with a step and a zero point for every group of a row, which are searched for the least squares of what
    is lost: ranges that leave the outermost weights out, then the step that is best for the codes."""
    parts = grouped(weight, group)
    low, high = parts.amin(dim=-1).clamp(max=0), parts.amax(dim=-1).clamp(min=0)
    best = _Codes.of(parts, (parts.abs().amax(dim=-1) / 7), torch.full_like(low, _ZERO))
    for share in _SHARES:
        step = share * (high - low) / 15
        best = best.or_better(_Codes.of(parts, step, -share * low / torch.where(step > 0, step, 1.0)))
        best = best.or_better(_Codes.of(parts, share * parts.abs().amax(dim=-1) / 8, torch.full_like(low, _ZERO)))
    for _ in range(2):
        whole = best.codes - best.zeros[..., None]
        squares = whole.square().sum(dim=-1)
        step = (whole * parts).sum(dim=-1) / torch.where(squares > 0, squares, 1.0)
        best = best.or_better(_Codes.of(parts, step, best.zeros))
    flat = best.codes.flatten(start_dim=1)[:, : weight.shape[1]].to(torch.uint8).numpy()
    zeros = best.zeros.to(torch.uint8).numpy()
    plain_zeros = bool((zeros == _ZERO).all())
    return Int4(_pairs(flat), best.steps.half().numpy(), None if plain_zeros else zeros, weight.shape[1], group)


@dataclass(frozen=True, slots=True)
class _Codes:
    """Codes [N, G, S] of 4 bits; steps (of fp16), whole zero points and the squares of what is lost [N, G]."""

    codes: Matrix
    steps: Matrix
    zeros: Matrix
    lost: Matrix

    @staticmethod
    def of(parts: Matrix, steps: Matrix, zeros: Matrix) -> _Codes:
        steps, zeros = steps.half().float(), zeros.round().clamp(0, 15)
        safe = torch.where(steps != 0, steps, 1.0)[..., None]
        codes = ((parts / safe).round() + zeros[..., None]).clamp(0, 15)
        lost = ((codes - zeros[..., None]) * steps[..., None] - parts).square().sum(dim=-1)
        return _Codes(codes, steps, zeros, lost)

    def or_better(self, other: _Codes) -> _Codes:
        better = other.lost < self.lost
        return _Codes(
            torch.where(better[..., None], other.codes, self.codes), torch.where(better, other.steps, self.steps),
            torch.where(better, other.zeros, self.zeros), torch.where(better, other.lost, self.lost),
        )  # fmt: skip


def side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """Matrices of the same inputs as one, the first one's rows first: queries, keys and values in one product.

    Where they are of different forms it holds their values in fp32.
    """
    if all(isinstance(part, Int8) for part in parts):
        codes, scales = zip(*((p.codes, p.scales) for p in parts if isinstance(p, Int8)), strict=True)
        return Int8(np.concatenate(codes), np.concatenate(scales))
    if all(isinstance(part, Bf16) for part in parts):
        return Bf16(np.concatenate([p.values for p in parts if isinstance(p, Bf16)]))
    groups = [part for part in parts if isinstance(part, Int4)]
    if len(groups) == len(parts):
        return _groups_side_by_side(groups)
    return Floats(np.concatenate([values(part) for part in parts]))


def values(tensor: Tensor) -> Array:
    """What a tensor says, in fp32."""
    if isinstance(tensor, Floats):
        return tensor.values
    if isinstance(tensor, Bf16):
        return (tensor.values.astype(np.uint32) << 16).view(np.float32)
    if isinstance(tensor, Int8):
        return tensor.codes.astype(np.float32) * tensor.scales[:, None]
    codes = np.stack([tensor.codes & 15, tensor.codes >> 4], axis=-1).reshape(len(tensor.codes), -1)
    zeros = np.full_like(tensor.scales, _ZERO) if tensor.zeros is None else tensor.zeros

    def spread(numbers: Array) -> Array:
        return numbers.astype(np.float32).repeat(tensor.group, axis=1)[:, : tensor.columns]

    found: Array = (codes[:, : tensor.columns].astype(np.float32) - spread(zeros)) * spread(tensor.scales)
    return found


def _groups_side_by_side(parts: Sequence[Int4]) -> Int4:
    group, columns = math.gcd(*(part.group for part in parts)), parts[0].columns
    count = -(-columns // group)
    scales = [part.scales.repeat(part.group // group, axis=1)[:, :count] for part in parts]
    zeros = None
    if any(part.zeros is not None for part in parts):
        own = [np.full(p.scales.shape, _ZERO, np.uint8) if p.zeros is None else p.zeros for p in parts]
        zeros = np.concatenate(
            [z.repeat(part.group // group, axis=1)[:, :count] for z, part in zip(own, parts, strict=True)]
        )
    return Int4(np.concatenate([part.codes for part in parts]), np.concatenate(scales), zeros, columns, group)


def _pairs(codes: Array) -> Array:
    """Codes [N, K] of 4 bits, two to a byte [N, ceil(K / 2)], the even column in the lower half."""
    even = np.pad(codes.astype(np.uint8), ((0, 0), (0, codes.shape[1] % 2)))
    found: Array = even[:, 0::2] | (even[:, 1::2] << 4)
    return found


def _bf16(weight: Matrix) -> Array:
    found: Array = weight.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    return found
