"""A matrix of few distinct values as codes of 1 to 8 bits, the values they stand for, and the exceptions.

Takes a float matrix [R, C], gives tensors that a safetensors file can hold, and back, bit for bit. Made for weights
that a pass has put on centroids (GOBO: Zadeh et al. 2020), but it asks only what is in the matrix: the 2^b commonest
values become codes, every other value is an exception with its place. b is what makes the whole smallest.

Legend: R rows, C columns, K values in the book, E exceptions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hasten.models.bit_packing import as_integers, matrix_shape, pack_bits, packed_bytes, unpack_bits

PARTS = frozenset({"layout", "codes", "book", "places", "exceptions"})
# Stored so only where it is clearly smaller than the plain matrix.
_MOST_BYTES = 0.7
_SAMPLE = 1 << 16
_PLACE_BYTES = 4


def pack(weight: Tensor) -> dict[str, Tensor] | None:
    """layout int64 [3] (R, C, b), codes uint8 [ceil(R C b / 8)], book [K], places int32 [E] (flat, rising) and
    exceptions [E]; ``None`` when that would not be clearly smaller."""
    if weight.ndim != 2 or not weight.is_floating_point() or weight.element_size() < 2:
        return None
    integers = as_integers(weight).flatten()
    if not 0 < len(integers) < 2**31 or not _few_values(integers):
        return None
    values, inverse, counts = torch.unique(integers, return_inverse=True, return_counts=True)
    order = counts.argsort(descending=True, stable=True)
    bits = _best_bits(counts[order], item=weight.element_size())
    if bits is None:
        return None
    book = order[: 2**bits].sort().values  # values as numbers rise: the same matrix always gives the same bytes
    code_of = torch.full((len(values),), -1, dtype=torch.int16)
    code_of[book] = torch.arange(len(book), dtype=torch.int16)
    codes = code_of[inverse]
    places = (codes < 0).nonzero().flatten()
    return {
        "layout": torch.tensor([*weight.shape, bits], dtype=torch.int64),
        "codes": pack_bits(codes.clamp(min=0).to(torch.uint8), bits=bits),
        "book": values[book].view(weight.dtype),
        "places": places.to(torch.int32),
        "exceptions": integers[places].view(weight.dtype),
    }


def unpack(parts: Mapping[str, Tensor]) -> Tensor:
    """The matrix [R, C]. Raises ValueError when the parts do not agree with each other."""
    rows, columns, bits = matrix_shape(parts["layout"], fields=3)
    book, places, exceptions = parts["book"], parts["places"], parts["exceptions"]
    if not 1 <= bits <= 8:
        raise ValueError(f"codes of {bits} bits, and 1 to 8 were expected")
    codes = unpack_bits(parts["codes"], bits=bits, count=rows * columns)
    if book.ndim != 1 or not book.is_floating_point() or (len(codes) and int(codes.max()) >= len(book)):
        raise ValueError(f"codes up to {int(codes.max())} for a book of {tuple(book.shape)} of {book.dtype}")
    if exceptions.dtype != book.dtype or places.dtype != torch.int32 or places.ndim != 1:
        raise ValueError(f"exceptions of {exceptions.dtype} at places of {places.dtype}, and a book of {book.dtype}")
    rising = bool((places[1:] > places[:-1]).all())
    if places.shape != exceptions.shape or not rising or (len(places) and not 0 <= int(places[0]) <= int(places[-1])):
        raise ValueError(f"{tuple(exceptions.shape)} exceptions at {tuple(places.shape)} places that do not rise")
    if len(places) and int(places[-1]) >= len(codes):
        raise ValueError(f"an exception at {int(places[-1])} of {len(codes)} weights")
    weight = book.index_select(0, codes.int())
    weight[places.long()] = exceptions
    return weight.view(rows, columns)


def _few_values(integers: Tensor) -> bool:
    """Is it worth a look? Ordinary weights hardly ever repeat a value."""
    sample = integers[:: max(1, len(integers) // _SAMPLE)]
    return len(torch.unique(sample)) * 4 <= len(sample)


def _best_bits(counts: Tensor, *, item: int) -> int | None:
    """The b that makes the parts smallest, for the values' counts, most frequent first."""
    total = int(counts.sum())
    covered = counts.cumsum(0)

    def size(bits: int) -> int:
        book = min(2**bits, len(counts))
        exceptions = total - int(covered[book - 1])
        parts: int = packed_bytes(total, bits=bits) + book * item + exceptions * (item + _PLACE_BYTES)
        return parts

    best = min(range(1, 9), key=size)
    return best if size(best) <= _MOST_BYTES * total * item else None
