"""A matrix whose fp32 values all fit into 16 bits, stored in them.

Takes a float matrix, gives it in bf16 or fp16, and back, bit for bit. What fits is seen in the values themselves.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hasten.models.bit_packing import as_integers

PARTS = frozenset({"half"})
_TYPES = (torch.bfloat16, torch.float16)


def pack(weight: Tensor) -> dict[str, Tensor] | None:
    """The matrix in 16 bits; ``None`` when some value would change."""
    if weight.ndim != 2 or weight.dtype != torch.float32 or not len(weight):
        return None
    bits = as_integers(weight)
    found = (half for kind in _TYPES if torch.equal(as_integers((half := weight.to(kind)).float()), bits))
    fits = next(found, None)
    return None if fits is None else {"half": fits}


def unpack(parts: Mapping[str, Tensor]) -> Tensor:
    """The matrix in fp32. Raises ValueError for another type."""
    half = parts["half"]
    if half.dtype not in _TYPES:
        raise ValueError(f"half is {half.dtype}, not bf16 or fp16")
    return half.float()
