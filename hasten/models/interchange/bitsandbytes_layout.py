"""A matrix as bitsandbytes stores it, as floats: 8 bits with a scale a row, or 4 bits that number a table's values.

Takes its parts, gives the weight [O, I] in fp32. 8 bits: code scale / 127. 4 bits: a table's value times the largest
magnitude of its block; the first of two codes is a byte's upper half. Those magnitudes may be quantized themselves.
What LLM.int8() does with outliers while it runs is not done here: only weights are read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hasten.models.interchange.parts import Quantized, unreadable

PARTS_8 = frozenset({"weight", "SCB", "weight_format"})
_STATE = "weight.quant_state.bitsandbytes__"
PARTS_4 = frozenset(
    {
        "weight", "weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map",
        f"{_STATE}nf4", f"{_STATE}fp4",
    }
)  # fmt: skip
MARK_8, MARK_4 = "SCB", "weight.absmax"
_LONGEST_STATE = 4096


def read(parts: Mapping[str, Tensor], of: Quantized) -> Tensor:
    """The parts of either kind. Raises ValueError where they do not fit each other."""
    del of
    return _of_8_bits(parts) if "SCB" in parts else _of_4_bits(parts)


def check(config: Mapping[str, Any]) -> None:
    """Raise InputError for settings that change what is stored."""
    storage = str(config.get("bnb_4bit_quant_storage") or "uint8")
    if storage != "uint8":
        raise unreadable(f"a bitsandbytes checkpoint with codes kept as {storage}", "codes kept as uint8")


def _of_8_bits(parts: Mapping[str, Tensor]) -> Tensor:
    weight, scales = parts["weight"], parts["SCB"].float()
    layout = parts.get("weight_format")
    if weight.dtype != torch.int8 or weight.shape[:1] != scales.shape or (layout is not None and int(layout)):
        raise ValueError(f"weights are {tuple(weight.shape)} of {weight.dtype} for {tuple(scales.shape)} scales")
    return weight.float() * (scales / 127.0)[:, None]


def _of_4_bits(parts: Mapping[str, Tensor]) -> Tensor:
    state = _state(parts)
    shape = [int(size) for size in state["shape"]]
    count = shape[0] * shape[1]
    packed = parts["weight"].flatten()
    if min(shape) < 1 or packed.dtype != torch.uint8 or len(packed) != -(-count // 2):
        raise ValueError(f"{len(packed)} bytes of {packed.dtype} for {count} weights")
    codes = torch.stack([packed >> 4, packed & 15], dim=1).flatten()[:count]
    values = parts["weight.quant_map"].float()[codes.long()]
    return (values * _spread(_largest(parts, state), state["blocksize"], count=count)).view(shape)


def _largest(parts: Mapping[str, Tensor], state: Mapping[str, Any]) -> Tensor:
    """fp32, one a block."""
    found = parts["weight.absmax"].flatten()
    if "weight.nested_absmax" not in parts:
        return found.float()
    table, outer = parts["weight.nested_quant_map"].float(), parts["weight.nested_absmax"].float()
    scales = _spread(outer, state["nested_blocksize"], count=len(found))
    return table[found.long()] * scales + float(state["nested_offset"])


def _spread(scales: Tensor, size: Any, *, count: int) -> Tensor:
    """One number a block of ``size`` -> one for each of ``count``, which the file's own size cannot make more."""
    size = int(size)
    if size < 1 or scales.ndim != 1 or len(scales) != -(-count // size):
        raise ValueError(f"{tuple(scales.shape)} scales for {count} numbers in blocks of {size}")
    return scales.repeat_interleave(min(size, count))[:count]


def _state(parts: Mapping[str, Tensor]) -> Mapping[str, Any]:
    text = next((parts[name] for name in parts if name.startswith(_STATE)), None)
    if text is None or text.dtype != torch.uint8 or text.numel() > _LONGEST_STATE:
        raise ValueError("it does not say how it was quantized")
    found = json.loads(bytes(text.tolist()))
    if not isinstance(found, dict) or not {"shape", "blocksize"} <= found.keys() or len(found["shape"]) != 2:
        raise ValueError("it does not say how it was quantized")
    return found
