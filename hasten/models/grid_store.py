"""A matrix on an integer grid as packed codes and a scale for each group of inputs, in as many bits as the codes need.

Takes a float matrix [R, C], gives tensors that a safetensors file can hold, and back, bit for bit. Made for weights
that a pass has rounded (RTN, GPTQ, AWQ, HQQ, LLM.int8()), but it asks only what is in the matrix. A weight is

* (code - 2^(bits-1)) scale: symmetric; or
* (code - zero) scale with a ``zeros`` code a group; or
* code scale + offset with an ``offsets`` number a group,

in fp32, and some columns may lie beside the codes in fp16. How a grid is seen: a scale of 11 significant bits times an
integer of 8 is exact in fp32, so a group's weights are whole multiples of its scale, and the greatest common divisor
tells it (of differences from the smallest, where there is an offset).

Legend: R rows, C columns, S columns of a group, G groups of a row, K columns kept in fp16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from hasten.models.bit_packing import as_integers, matrix_shape, pack_bits, unpack_bits

PARTS = frozenset({"layout", "codes", "scales"})
OPTIONAL = frozenset({"zeros", "offsets", "columns", "values"})
Parts = dict[str, Tensor]
_GROUPS = (128, 64, 32)
# Of the plain matrix, at most.
_MOST_BYTES = 0.7
_SAMPLE_ROWS = 16
# Weights are whole multiples of so many halvings of the largest one.
_PLACES = 29
_CHUNK = 1 << 22
_MOST_BESIDE = 0.5
# Columns that are looked at together for one that is on no grid.
_FEW = 4
_NO_STEP = 2**31 - 1


def pack(weight: Tensor) -> Parts | None:
    """layout int64 [4] (R, C, bits, S), codes uint8 [ceil(R C bits / 8)] and scales [R G]; where there are some, zeros
    uint8 [ceil(R G bits / 8)] or offsets [R G], columns int32 [K] (rising) and values fp16 [R, K]. ``None``: on no
    grid of at most 8 bits. Scales and offsets are fp16 where that says all of them, else fp32."""
    if weight.ndim != 2 or weight.dtype != torch.float32 or not bool(weight.any()):
        return None
    sample = weight[:: max(1, len(weight) // _SAMPLE_ROWS)]
    for way in _ways(weight.shape[1]):
        # Ordinary weights, and other grids, show in a few rows.
        found = None if way(sample) is None else way(weight)
        if found is not None:
            size = sum(part.numel() * part.element_size() for part in found.values())
            return found if size <= _limit(weight) else None
    return None


def _limit(weight: Tensor) -> float:
    """Bytes that a grid may take: clearly less than the plain matrix, and no more than one of so many zeros."""
    sparse = weight.numel() / 8 + 4 * int(weight.count_nonzero())
    return min(_MOST_BYTES * 4 * weight.numel(), sparse)


def unpack(parts: Mapping[str, Tensor]) -> Tensor:
    """The matrix [R, C]. Raises ValueError, before it asks for much memory, when the parts do not agree."""
    rows, columns, bits, size = matrix_shape(parts["layout"], fields=4)
    if rows < 1 or not 1 <= bits <= 8 or not 1 <= size <= columns:
        raise ValueError(f"{bits} bits in groups of {size} are no grid of {rows} rows and {columns} columns")
    codes = unpack_bits(parts["codes"], bits=bits, count=rows * columns).view(rows, columns)
    shape = (rows, -(-columns // size))
    if "zeros" in parts and "offsets" in parts:
        raise ValueError("there are zero points and offsets, and one of them was expected")

    def spread(numbers: Tensor) -> Tensor:
        return numbers.repeat_interleave(size, dim=1)[:, :columns]

    scales = _numbers(parts["scales"], shape=shape)
    if "zeros" in parts:
        zeros = spread(unpack_bits(parts["zeros"], bits=bits, count=shape[0] * shape[1]).view(shape)).float()
        weight = (codes.float() - zeros) * spread(scales)
    elif "offsets" in parts:
        weight = codes.float() * spread(scales) + spread(_numbers(parts["offsets"], shape=shape))
    else:
        weight = (codes.float() - 2 ** (bits - 1)) * spread(scales)
    return _with_columns(weight, parts)


def _numbers(numbers: Tensor, *, shape: tuple[int, int]) -> Tensor:
    """fp32 [R, G]. Raises ValueError."""
    wanted = numbers.dtype in (torch.float16, torch.float32) and numbers.shape == (shape[0] * shape[1],)
    if not wanted or not bool(torch.isfinite(numbers).all()):
        raise ValueError(
            f"scales or offsets are {tuple(numbers.shape)} of {numbers.dtype}, and {shape[0] * shape[1]} finite ones "
            "of fp16 or fp32 were expected"
        )
    return numbers.float().view(shape)


def _with_columns(weight: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
    columns, values = parts.get("columns"), parts.get("values")
    if columns is None and values is None:
        return weight
    if columns is None or values is None or columns.dtype != torch.int32 or columns.ndim != 1:
        raise ValueError("columns beside the codes need numbers in int32 and values")
    rising = bool((columns[1:] > columns[:-1]).all())
    if not len(columns) or not rising or not 0 <= int(columns[0]) <= int(columns[-1]) < weight.shape[1]:
        raise ValueError(f"{len(columns)} columns beside the codes do not rise from 0 to {weight.shape[1] - 1}")
    if values.dtype != torch.float16 or values.shape != (len(weight), len(columns)):
        raise ValueError(f"values of {len(columns)} columns are {tuple(values.shape)} of {values.dtype}")
    weight[:, columns.long()] = values.float()
    return weight


# --------------------------------------------------------------------------- finding the grid


@dataclass(frozen=True, slots=True)
class _Lattice:
    """weight = numbers scales + offsets: int32 [R, G, S] (the last group repeats its last weight), float64 [R, G]."""

    numbers: Tensor
    scales: Tensor
    offsets: Tensor


def _ways(width: int) -> list[Callable[[Tensor], Parts | None]]:
    """What is tried, coarse grids first: they take less room."""
    sizes = [width, *(size for size in _GROUPS if size < width)]
    through_zero = [partial(_on_grid, size=size, free=False) for size in sizes]
    free = [partial(_on_grid, size=size, free=True) for size in sizes]
    return [through_zero[0], _on_grid_beside_columns, *through_zero[1:], *free]


def _on_grid(weight: Tensor, *, size: int, free: bool) -> Parts | None:
    """The parts of a matrix whose groups of ``size`` columns each lie on a grid, through zero unless it is ``free``."""
    lattices = []
    for rows in torch.split(weight, max(1, _CHUNK // weight.shape[1])):
        lattice = _lattice(rows, size=size, free=free)
        if lattice is None:
            return None
        lattices.append(lattice)
    whole = _Lattice(
        torch.cat([one.numbers for one in lattices]), torch.cat([one.scales for one in lattices]),
        torch.cat([one.offsets for one in lattices]),
    )  # fmt: skip
    parts = _coded(whole, weight.shape[1], free=free)
    return parts if parts is not None and _identical(unpack(parts), weight) else None


def _on_grid_beside_columns(weight: Tensor) -> Parts | None:
    """The parts of a matrix whose rows lie on grids of 8 bits but for a few columns."""
    beside = _columns_off_grid(weight)
    if beside is None or not 0 < int(beside.sum()) <= _MOST_BESIDE * len(beside):
        return None
    values = weight[:, beside].half()
    if not _identical(values.float(), weight[:, beside]):
        return None
    parts = _on_grid(weight.masked_fill(beside, 0.0), size=weight.shape[1], free=False)
    return parts and {**parts, "columns": beside.nonzero().flatten().to(torch.int32), "values": values}


def _lattice(weight: Tensor, *, size: int, free: bool) -> _Lattice | None:
    padded = nn.functional.pad(weight.double()[None], (0, -weight.shape[1] % size), mode="replicate")[0]
    found = _whole(padded.view(len(weight), -1, size))
    if found is None:
        return None
    numbers, units = found
    base = numbers.amin(dim=-1, keepdim=True) if free else torch.zeros_like(numbers[..., :1])
    numbers = numbers - base
    divisor = _common(numbers)
    numbers = numbers // divisor.clamp(min=1)[..., None]
    if int(numbers.abs().max()) > 255:
        return None
    return _Lattice(numbers, divisor * units, base[..., 0] * units)


def _whole(weights: Tensor) -> tuple[Tensor, Tensor] | None:
    """float64 [..., S] as int32 [..., S] times a power of two [...]; ``None`` where some weight is no multiple."""
    largest = weights.abs().amax(dim=-1)
    if not bool(torch.isfinite(largest).all()):
        return None
    units = torch.from_numpy(np.ldexp(1.0, torch.frexp(largest).exponent.numpy() - _PLACES))
    multiples = weights / units[..., None]
    return (multiples.to(torch.int32), units) if torch.equal(multiples, multiples.round()) else None


def _common(numbers: Tensor) -> Tensor:
    """The greatest common divisor of the last dimension; 0 where all are 0."""
    return torch.from_numpy(np.gcd.reduce(numbers.numpy(), axis=-1))


def _columns_off_grid(weight: Tensor) -> Tensor | None:
    """True [C] where not all of the column is a multiple, by at most 127, of its row's step.

    A row's step is what most columns say, looked at a few neighbours at a time: some of these have none off the grid.
    By chance their codes can share a factor, or a number off the grid can hide; neither is common.
    """
    width = weight.shape[1]
    found = torch.zeros(width, dtype=torch.bool)
    for rows in torch.split(weight, max(1, _CHUNK // width)):
        multiples = _whole(rows.double())
        if multiples is None or width < _FEW:
            return None
        numbers = multiples[0].long()
        few = numbers[:, : width // _FEW * _FEW].reshape(len(rows), -1, _FEW)
        divisors = _common(few)
        fits = (divisors > 0) & (few.abs().amax(dim=-1) <= 127 * divisors)
        ranked = torch.where(fits, divisors, _NO_STEP).sort(dim=-1).values
        steps = ranked.gather(-1, (fits.sum(dim=-1, keepdim=True) - 1).clamp(min=0) // 2)
        found |= ((numbers % steps != 0) | (numbers.abs() > 127 * steps)).any(dim=0)
    return found


# --------------------------------------------------------------------------- writing it down


def _coded(lattice: _Lattice, width: int, *, free: bool) -> Parts | None:
    """The parts of a lattice of ``width`` columns; ``None`` when codes of 8 bits do not reach."""
    numbers = lattice.numbers
    low, high = numbers.amin(dim=-1).clamp(max=0), numbers.amax(dim=-1).clamp(min=0)
    spans, ends = high - low, torch.maximum(high, -low)
    bits, balanced = (int(largest.max()).bit_length() for largest in (spans, ends))
    symmetric = not free and balanced + 1 <= bits
    if bits > 8:
        return None
    most = 2 ** (bits - 1) - 1 if symmetric else 2**bits - 1
    by = _divisors(lattice.scales, most // (ends if symmetric else spans).clamp(min=1))
    zeros = torch.full_like(low, 2 ** (bits - 1)) if symmetric else -low * by
    codes = (numbers * by[..., None] + zeros[..., None]).flatten(start_dim=1)[:, :width]
    parts = {
        "layout": torch.tensor([len(numbers), width, bits, numbers.shape[-1]], dtype=torch.int64),
        "codes": pack_bits(codes.flatten().to(torch.uint8), bits=bits),
        "scales": _shortest(lattice.scales / by),
    }
    if free:
        parts["offsets"] = _shortest(lattice.offsets)
    elif not symmetric:
        parts["zeros"] = pack_bits(zeros.flatten().to(torch.uint8), bits=bits)
    return parts


def _divisors(scales: Tensor, room: Tensor) -> Tensor:
    """int32 [R, G]: what to divide scales by, 1 to ``room``, so that fp16 says them; 1 where nothing helps.

    Codes that happen to have a factor in common hide it in their scale.
    """
    found = torch.ones_like(room)
    left = scales.half().double() != scales
    for divisor in range(2, int((room * left).max()) + 1):
        fits = left & (room >= divisor) & ((scales / divisor).half().double() * divisor == scales)
        found[fits] = divisor
        left &= ~fits
    return found


def _shortest(numbers: Tensor) -> Tensor:
    """float64 [R, G] as fp16 [R G] where that says all of them, else as fp32."""
    half = numbers.half()
    return (half if torch.equal(half.double(), numbers) else numbers.float()).flatten()


def _identical(found: Tensor, weight: Tensor) -> bool:
    """Down to the sign of zero."""
    return torch.equal(as_integers(found), as_integers(weight))
