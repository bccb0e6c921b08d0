"""A model's matrices in the forms that the native engine multiplies with: int8 by row, 4 and 5 bits in groups, bf16,
fp32.

Takes torch matrices [N, K], gives tensors of the flat program. A matrix on an integer grid, where a pass or the file
that it comes from has put it, keeps its integers and scales (as far as fp16 says them) where a form holds them: up to
8 bits with a step for every row through zero, or up to 5 bits in groups, with or without whole zero points (up to 4
bits) or offsets. Groups of 8 bits and columns beside a grid have no form here, and are rounded as any matrix.

Rounding is that of training on the grid (:mod:`hasten.passes.fake_quant`): q = clip(round(w / s), -m, m) with
s = max|w| / m, m = 127 for 8 bits, 15 for 5 and 7 for 4, where s of groups is rounded to fp16 first.

Legend: N outputs, K inputs, G groups of a row, S inputs of a group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor as Matrix

from hasten.models import grid_store
from hasten.models.bit_packing import unpack_bits
from hasten.native.tensors import Bf16, Floats, Int4, Int5, Int8, Tensor
from hasten.passes.grid import grouped
from hasten.runtimes.native_groups import Bits, around_zero, codes_of, in_codes, pairs, searched

Precision = Literal["fp32", "bf16", "int8-dynamic", "int5", "int4"]
INTEGERS: tuple[Precision, ...] = ("int8-dynamic", "int5", "int4")
_BITS: dict[Precision, Bits] = {"int4": 4, "int5": 5}
_ZERO = 8  # the code of zero in 4 bits where there are no zero points
_SAMPLE_ROWS = 16
_WHOLE_ROW = 128  # a row that shares a step is so many groups of the same
Array = np.ndarray[Any, Any]


def rounded(weight: Matrix, *, precision: Precision, group: int, fitted: bool = False) -> Tensor:
    """``weight`` [N, K] as this precision holds it; ``fitted``: groups have steps and offsets that are searched for."""
    weight = plain(weight)
    if precision == "fp32" or not weight.numel():
        return Floats(weight.numpy())
    if precision == "bf16":
        return Bf16(_bf16(weight))
    if precision == "int8-dynamic":
        return in_int8(weight)
    bits = _BITS[precision]
    return searched(weight, bits=bits, group=group) if fitted else in_groups(weight, bits=bits, group=group)


def plain(weight: Matrix) -> Matrix:
    """In fp32, row by row in memory, without a history."""
    return weight.detach().float().contiguous()


def stored_table(weight: Matrix, *, int8: bool) -> Tensor:
    """A table [rows, K] of which rows are read: exactly what it says in as little room as it takes, or in int8."""
    weight = plain(weight)
    found = on_grid(weight)
    if found is not None and (int8 or np.array_equal(values(found), weight.numpy())):
        return found
    if int8:
        return in_int8(weight)
    short = weight.to(torch.bfloat16)
    return Bf16(_bf16(weight)) if torch.equal(short.float(), weight) else Floats(weight.numpy())


def on_grid(weight: Matrix) -> Int8 | Int5 | Int4 | None:
    """The integers and scales that all of ``weight`` consists of; ``None`` where no form holds them. Scales and offsets
    of groups are rounded to fp16 where they say more, which is far less than a step of 8 bits."""
    # -0 becomes 0: files of few bits have both.
    few = weight[:: max(1, len(weight) // _SAMPLE_ROWS)]
    if len(few) < len(weight) and not _is_held(grid_store.pack(few + 0.0), sample=True):
        return None
    parts = grid_store.pack(weight + 0.0)
    if parts is None or not _is_held(parts):
        return None
    rows, columns, bits, size = parts["layout"].tolist()
    codes = unpack_bits(parts["codes"], bits=bits, count=rows * columns).numpy().reshape(rows, columns)
    if size == columns and "zeros" not in parts and "offsets" not in parts:
        numbers = codes.astype(np.int16) - 2 ** (bits - 1)
        return Int8(numbers.astype(np.int8), parts["scales"].float().numpy())
    return _grid_in_groups(codes, parts, bits=bits, size=size)


def _is_held(parts: Mapping[str, Matrix] | None, *, sample: bool = False) -> bool:
    """May one of the forms hold this grid, or the one of which this is a ``sample``? A few rows may not reach both ends
    of a grid through zero, and then seem to have zero points."""
    if parts is None or "columns" in parts:
        return False
    _, columns, bits, size = parts["layout"].tolist()
    return bits <= 5 or (size == columns and "offsets" not in parts and (sample or "zeros" not in parts))


def _grid_in_groups(codes: Array, parts: Mapping[str, Matrix], *, bits: int, size: int) -> Int5 | Int4 | None:
    rows, columns = codes.shape
    shape = (rows, -(-columns // size))
    scales = _halves(parts["scales"], shape)
    offsets = _halves(parts["offsets"], shape) if "offsets" in parts else None
    if scales is None or (offsets is None) != ("offsets" not in parts):
        return None
    zeros: Array = np.full(shape, 2 ** (bits - 1), np.uint8)
    if "zeros" in parts:
        zeros = unpack_bits(parts["zeros"], bits=bits, count=math.prod(shape)).numpy().reshape(shape)
    if size == columns:
        size, count = _WHOLE_ROW, -(-columns // _WHOLE_ROW)
        scales, zeros = scales.repeat(count, axis=1), zeros.repeat(count, axis=1)
        offsets = None if offsets is None else offsets.repeat(count, axis=1)
    held: Bits = 5 if bits == 5 else 4
    if offsets is not None:
        return in_codes(codes, scales, offsets=offsets, bits=held, group=size)
    around = around_zero(codes, scales, zeros, bits=held, group=size)
    if around is not None or held == 5:
        return around
    return Int4(pairs(codes), scales, zeros, columns, size)


def _halves(numbers: Matrix, shape: tuple[int, int]) -> Array | None:
    """In fp16; ``None`` where that says less than its eleven bits, of what is very large or very small."""
    short = numbers.half()
    if bool(((short.double() - numbers.double()).abs() > 2**-11 * numbers.double().abs()).any()):
        return None
    return np.asarray(short.numpy().reshape(shape))


def in_int8(weight: Matrix) -> Int8:
    """Rounded with a step for every row."""
    steps = weight.abs().amax(dim=1) / 127
    codes = (weight / torch.where(steps > 0, steps, 1.0)[:, None]).round().clamp(-127, 127)
    return Int8(codes.to(torch.int8).numpy(), steps.numpy())


def in_groups(weight: Matrix, *, bits: Bits, group: int) -> Int4 | Int5:
    """Rounded with a step for every group of a row; a short last group has one too."""
    middle = 2 ** (bits - 1)
    most, parts = middle - 1, grouped(weight, group)
    steps = (parts.abs().amax(dim=-1) / most).half()
    safe = torch.where(steps > 0, steps, 1.0).float()[..., None]
    codes = (parts / safe).round().clamp(-most, most).to(torch.int16) + middle
    flat = codes.flatten(start_dim=1)[:, : weight.shape[1]].to(torch.uint8).numpy()
    return in_codes(flat, steps.numpy(), offsets=None, bits=bits, group=group)


def side_by_side(parts: Sequence[Tensor]) -> Tensor | None:
    """Matrices of the same inputs as one, the first one's rows first: queries, keys and values in one product. ``None``
    where no form holds them all."""
    if all(isinstance(part, Floats) for part in parts):
        return Floats(np.concatenate([values(part) for part in parts]))
    if all(isinstance(part, Int8) for part in parts):
        codes, scales = zip(*((p.codes, p.scales) for p in parts if isinstance(p, Int8)), strict=True)
        return Int8(np.concatenate(codes), np.concatenate(scales))
    if all(isinstance(part, Bf16) for part in parts):
        return Bf16(np.concatenate([p.values for p in parts if isinstance(p, Bf16)]))
    if all(isinstance(part, Int5) for part in parts):
        return _groups_side_by_side([part for part in parts if isinstance(part, Int5)], bits=5)
    fours = [part for part in parts if isinstance(part, Int4)]
    if len(fours) == len(parts) and _shift_alike(fours):
        return _groups_side_by_side(fours, bits=4)
    return None


def values(tensor: Tensor) -> Array:
    """What a tensor says, in fp32."""
    if isinstance(tensor, Floats):
        return tensor.values
    if isinstance(tensor, Bf16):
        return (tensor.values.astype(np.uint32) << 16).view(np.float32)
    if isinstance(tensor, Int8):
        return tensor.codes.astype(np.float32) * tensor.scales[:, None]

    def spread(numbers: Array) -> Array:
        return numbers.astype(np.float32).repeat(tensor.group, axis=1)[:, : tensor.columns]

    codes, scales = codes_of(tensor).astype(np.float32), spread(tensor.scales)
    if tensor.offsets is not None:
        return np.asarray(codes * scales + spread(tensor.offsets))
    middle = _ZERO if isinstance(tensor, Int4) else 2 ** (5 - 1)
    zeros = tensor.zeros if isinstance(tensor, Int4) else None
    return np.asarray((codes - (middle if zeros is None else spread(zeros))) * scales)


def _shift_alike(parts: Sequence[Int4]) -> bool:
    """Whole zero points and offsets cannot be told in one matrix; a middle that is zero can be told in either."""
    return not (any(p.zeros is not None for p in parts) and any(p.offsets is not None for p in parts))


def _groups_side_by_side(parts: Sequence[Int4 | Int5], *, bits: Bits) -> Int4 | Int5:
    group, middle = math.gcd(*(part.group for part in parts)), 2 ** (bits - 1)
    count = -(-parts[0].columns // group)

    def together(numbers: Sequence[Array]) -> Array:
        spread = [own.repeat(part.group // group, axis=1)[:, :count] for own, part in zip(numbers, parts, strict=True)]
        return np.concatenate(spread)

    offsets = None
    if any(part.offsets is not None for part in parts):
        offsets = together([-middle * p.scales if p.offsets is None else p.offsets for p in parts])
    codes, scales = np.concatenate([codes_of(part) for part in parts]), together([part.scales for part in parts])
    found = in_codes(codes, scales, offsets=offsets, bits=bits, group=group)
    shifts = [part.zeros for part in parts if isinstance(part, Int4)]
    if not isinstance(found, Int4) or all(own is None for own in shifts):
        return found
    own = [np.full(p.scales.shape, _ZERO, np.uint8) if z is None else z for p, z in zip(parts, shifts, strict=True)]
    return replace(found, zeros=together(own))


def _bf16(weight: Matrix) -> Array:
    found: Array = weight.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    return found
