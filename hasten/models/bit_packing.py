"""Small numbers packed into bytes, and the bits of a tensor as integers.

Takes codes of 1 to 8 bits, gives bytes, and back: code k of b bits lies in bits k b to (k + 1) b - 1 of the stream,
lowest first, and what is left of the last byte is zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

# Bits are spread over a byte each while they are packed: this many codes at a time, a multiple of 8.
_CHUNK = 1 << 20
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def pack_bits(codes: Tensor, *, bits: int) -> Tensor:
    """uint8 codes [N] below 2^bits -> uint8 [ceil(N bits / 8)]."""
    source = codes.numpy()
    places = np.arange(bits, dtype=np.uint8)
    chunks = [
        np.packbits((source[start : start + _CHUNK, None] >> places) & 1, bitorder="little")
        for start in range(0, len(source), _CHUNK)
    ]
    return torch.from_numpy(np.concatenate(chunks) if chunks else np.empty(0, np.uint8))


def unpack_bits(stream: Tensor, *, bits: int, count: int) -> Tensor:
    """The inverse: uint8 [count]. Raises ValueError when the stream is not exactly as long as ``count`` codes are."""
    if stream.dtype != torch.uint8 or stream.ndim != 1 or len(stream) != packed_bytes(count, bits=bits):
        raise ValueError(
            f"{count} codes of {bits} bits are {packed_bytes(count, bits=bits)} bytes, and there are "
            f"{tuple(stream.shape)} of {stream.dtype}"
        )
    source = stream.numpy()
    weights = (1 << np.arange(bits)).astype(np.uint8)
    found = np.empty(count, np.uint8)
    for start in range(0, count, _CHUNK):
        end = min(start + _CHUNK, count)
        part: np.ndarray[Any, Any] = source[start * bits // 8 : packed_bytes(end, bits=bits)]
        spread = np.unpackbits(part, bitorder="little")
        if end == count and spread[(end - start) * bits :].any():
            raise ValueError("bits behind the last code are not zero")
        np.dot(spread[: (end - start) * bits].reshape(-1, bits), weights, out=found[start:end])
    return torch.from_numpy(found)


def packed_bytes(count: int, *, bits: int) -> int:
    return (count * bits + 7) // 8


def as_integers(tensor: Tensor) -> Tensor:
    """The same memory as integers: equality is then of bits, so that -0.0 and NaN are values like others."""
    return tensor.contiguous().view(_INTEGERS[tensor.element_size()])


def matrix_shape(layout: Tensor, *, fields: int) -> list[int]:
    """The numbers of a stored layout: rows, columns and what else the format says. Raises ValueError."""
    if layout.dtype != torch.int64 or layout.shape != (fields,) or int(layout.min()) < 0:
        raise ValueError(f"the layout is {tuple(layout.shape)} of {layout.dtype}, and {fields} sizes were expected")
    found: list[int] = layout.tolist()
    return found
