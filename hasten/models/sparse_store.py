"""A matrix with many zeros as a bit mask and the values that are left.

Takes a float matrix [R, C], gives three tensors that a safetensors file can hold, and back, bit for bit. Costs 1 bit a
weight and the values, so it is smaller from 1/32 zeros on in fp32; matrices with fewer than 30% zeros are left alone.
A zero is one whose bits are all zero: -0.0 is kept as a value.

Legend: R rows, C columns, N values that are not zero.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hasten.models.bit_packing import as_integers, matrix_shape, pack_bits, unpack_bits

LEAST_ZEROS = 0.3
PARTS = frozenset({"layout", "mask", "values"})


def pack(weight: Tensor) -> dict[str, Tensor] | None:
    """layout int64 [2] (R, C), mask uint8 [ceil(R C / 8)] and values [N] row by row; ``None``: not sparse enough."""
    if weight.ndim != 2 or not weight.is_floating_point() or weight.element_size() < 2 or weight.numel() == 0:
        return None
    kept = as_integers(weight).flatten() != 0
    if int(kept.sum()) > (1 - LEAST_ZEROS) * weight.numel():
        return None
    return {
        "layout": torch.tensor(weight.shape, dtype=torch.int64),
        "mask": pack_bits(kept.to(torch.uint8), bits=1),
        "values": weight.flatten()[kept],
    }


def unpack(parts: Mapping[str, Tensor]) -> Tensor:
    """The matrix [R, C]. Raises ValueError, before it asks for any memory, when the parts' sizes do not agree."""
    rows, columns = matrix_shape(parts["layout"], fields=2)
    values = parts["values"]
    kept = unpack_bits(parts["mask"], bits=1, count=rows * columns).bool()
    if values.ndim != 1 or not values.is_floating_point() or len(values) != int(kept.sum()):
        raise ValueError(
            f"the mask has {int(kept.sum())} ones, and there are {tuple(values.shape)} values of {values.dtype}"
        )
    weight = torch.zeros(rows * columns, dtype=values.dtype)
    weight[kept] = values
    return weight.view(rows, columns)
