"""A matrix as compressed-tensors stores it (vLLM, llm-compressor), as floats.

Takes its parts, gives the weight [O, I] in fp32: (code - zero) scale. "pack-quantized" keeps codes of 1 to 8 bits in
words, counted from the lowest; "int-quantized", "naive-quantized" and "float-quantized" keep numbers of 8 bits as they
are. What the config says of inputs that are rounded while the model runs is not done here: only weights are read.

Legend: O outputs, I inputs, G groups, b bits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hasten.models.interchange.parts import Quantized, unreadable
from hasten.models.interchange.words import unpack_words

MARK = "weight_scale"
PARTS = frozenset(
    {"weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"}
)  # fmt: skip
FORMATS = ("pack-quantized", "int-quantized", "naive-quantized", "float-quantized", "dense")
_STRATEGIES = ("tensor", "channel", "group")


def read(parts: Mapping[str, Tensor], of: Quantized) -> Tensor:
    """weight_packed int32 [O, I b / 32] with weight_shape, or weight of 8 bits [O, I]; weight_scale [1], [O, 1] or
    [O, G]; maybe weight_zero_point and weight_g_idx [I]. Raises ValueError where they do not fit each other."""
    scheme = scheme_of(of)["weights"]
    bits, scale = int(scheme["num_bits"]), parts["weight_scale"].float()
    codes = _codes(parts, bits=bits)
    if scale.ndim < 2:
        scale = scale.reshape(-1, 1)
    groups = _groups(parts, scheme, inputs=codes.shape[1])
    if len(scale) not in (1, len(codes)) or int(groups.max()) + 1 != scale.shape[1]:
        raise ValueError(f"{tuple(codes.shape)} codes in {int(groups.max()) + 1} groups, {tuple(scale.shape)} scales")
    zeros = _zeros(parts, bits=bits, shape=(len(codes), scale.shape[1]))
    return (codes - (0.0 if zeros is None else zeros[:, groups])) * scale[:, groups]


def check(config: Mapping[str, Any]) -> None:
    """Raise InputError for a format that is not read, wherever the config names it."""
    formats = {str(config.get("format", "dense")), *(str(g["format"]) for g in _schemes(config) if g.get("format"))}
    formats.discard("mixed-precision")  # then each group has its own
    strange = sorted(formats - set(FORMATS))
    if strange:
        raise unreadable(f"a compressed-tensors checkpoint of the format {strange[0]!r}", ", ".join(FORMATS))
    if config.get("transform_config") or (config.get("sparsity_config") or {}).get("format", "dense") != "dense":
        raise unreadable("a compressed-tensors checkpoint with rotated or sparse weights", "quantized weights alone")
    for scheme in _schemes(config):
        strategy = (scheme.get("weights") or {}).get("strategy", "tensor")
        if strategy not in _STRATEGIES:
            raise unreadable(f"weights whose scales are by {strategy!r}", f"scales by {', '.join(_STRATEGIES)}")


def scheme_of(of: Quantized) -> Mapping[str, Any]:
    """The group of the config that says how this module is stored: its name first, then patterns, then its class.

    Raises ValueError for a module that no group names.
    """
    schemes = [scheme for scheme in _schemes(of.config) if scheme.get("weights")]
    found: Mapping[str, Any]
    for matches in (_by_name, _by_pattern, _by_class):
        for found in schemes:
            if any(matches(str(target), of) for target in found.get("targets", ())):
                return found
    raise ValueError("no group of the config names it")


def _by_name(target: str, of: Quantized) -> bool:
    return target == of.name


def _by_pattern(target: str, of: Quantized) -> bool:
    return target.startswith("re:") and re.match(target.removeprefix("re:"), of.name) is not None


def _by_class(target: str, of: Quantized) -> bool:
    return target == of.kind


def _schemes(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = list((config.get("config_groups") or {}).values())
    if not all(isinstance(scheme, Mapping) for scheme in found):
        raise unreadable("a compressed-tensors config with named schemes", "schemes that are written out")
    return found


def _codes(parts: Mapping[str, Tensor], *, bits: int) -> Tensor:
    """fp32 [O, I], signed."""
    if "weight_packed" not in parts:
        return parts["weight"].float()
    outputs, inputs = (int(size) for size in parts["weight_shape"].tolist())
    codes = unpack_words(parts["weight_packed"], bits=bits, count=inputs).float() - (1 << (bits - 1))
    if len(codes) != outputs:
        raise ValueError(f"{len(codes)} rows of codes for {outputs} outputs")
    return codes


def _zeros(parts: Mapping[str, Tensor], *, bits: int, shape: tuple[int, int]) -> Tensor | None:
    """fp32 [O, G], signed; ``None`` where the grid is symmetric."""
    found = parts.get("weight_zero_point")
    if found is None:
        return None
    if "weight_packed" in parts and found.dtype == torch.int32 and found.shape != shape:
        return unpack_words(found.T.contiguous(), bits=bits, count=shape[0]).T.float() - (1 << (bits - 1))
    return found.float().reshape(-1, shape[1])


def _groups(parts: Mapping[str, Tensor], scheme: Mapping[str, Any], *, inputs: int) -> Tensor:
    """int64 [I]: the column of the scales that is each input's."""
    if "weight_g_idx" in parts:
        return parts["weight_g_idx"].long()
    size = int(scheme.get("group_size") or 0) if scheme.get("strategy") == "group" else 0
    return torch.arange(inputs) // (size if size > 0 else inputs)
