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
    shape, block = [int(size) for size in state["shape"]], int(state["blocksize"])
    count = shape[0] * shape[1]
    packed = parts["weight"].flatten()
    if packed.dtype != torch.uint8 or len(packed) != -(-count // 2):
        raise ValueError(f"{len(packed)} bytes of {packed.dtype} for {count} weights")
    codes = torch.stack([packed >> 4, packed & 15], dim=1).flatten()[:count]
    largest = _largest(parts, state)
    if block < 1 or len(largest) != -(-count // block):
        raise ValueError(f"{len(largest)} blocks of {block} for {count} weights")
    values = parts["weight.quant_map"].float()[codes.long()]
    return (values * largest.repeat_interleave(block)[:count]).view(shape)


def _largest(parts: Mapping[str, Tensor], state: Mapping[str, Any]) -> Tensor:
    """fp32, one a block."""
    found = parts["weight.absmax"]
    if "weight.nested_absmax" not in parts:
        return found.float()
    size = int(state["nested_blocksize"])
    table, outer = parts["weight.nested_quant_map"].float(), parts["weight.nested_absmax"].float()
    return table[found.long()] * outer.repeat_interleave(size)[: len(found)] + float(state["nested_offset"])


def _state(parts: Mapping[str, Tensor]) -> Mapping[str, Any]:
    text = next((parts[name] for name in parts if name.startswith(_STATE)), None)
    if text is None or text.dtype != torch.uint8 or text.numel() > _LONGEST_STATE:
        raise ValueError("it does not say how it was quantized")
    found = json.loads(bytes(text.tolist()))
    if not isinstance(found, dict) or not {"shape", "blocksize"} <= found.keys() or len(found["shape"]) != 2:
        raise ValueError("it does not say how it was quantized")
    return found
