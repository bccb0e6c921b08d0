"""A matrix as AutoGPTQ and GPTQModel store it, as floats.

Takes its parts, gives the weight [O, I] in fp32: (code - zero) scale, with the scale and the zero of the group that
``g_idx`` names for each input. Codes are packed along the inputs, zeros along the outputs. The first version of the
format stores each zero less one, the second as it is.

Legend: O outputs, I inputs, G groups, b bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hasten.models.interchange.parts import Quantized, unreadable
from hasten.models.interchange.words import unpack_words

MARK = "qweight"
PARTS = frozenset({"qweight", "qzeros", "scales", "g_idx"})
_BITS = (2, 3, 4, 8)
# Value of "checkpoint_format" -> what has to be added to a stored zero
_VERSIONS = {"gptq": 1, "gptq_v2": 0}


def read(parts: Mapping[str, Tensor], of: Quantized) -> Tensor:
    """qweight int32 [I b / 32, O], qzeros int32 [G, O b / 32], scales [G, O] and maybe g_idx int32 [I]; with
    ``of.config``. Raises ValueError where they do not fit each other."""
    bits = int(of.config.get("bits", 4))
    words, scales = parts["qweight"], parts["scales"].float()
    inputs = len(parts["g_idx"]) if "g_idx" in parts else len(words) * 32 // bits
    own = len(words) * 32 // inputs  # a file may say other bits for single matrices
    if own not in _BITS or (own != bits and not of.config.get("dynamic")):
        raise ValueError(f"its codes have {own} bits, and the config says {bits}")
    codes = unpack_words(words.T.contiguous(), bits=own, count=inputs)
    outputs = codes.shape[0]
    zeros = unpack_words(parts["qzeros"], bits=own, count=outputs).float() + first_zero(of.config)
    groups = _groups(parts, inputs=inputs, config=of.config)
    if zeros.shape != scales.shape or not 0 <= int(groups.min()) <= int(groups.max()) < len(scales):
        raise ValueError(f"{tuple(scales.shape)} scales, {tuple(zeros.shape)} zeros and {int(groups.max()) + 1} groups")
    return (codes.float() - zeros[groups].T) * scales[groups].T


def check(config: Mapping[str, Any]) -> None:
    """Raise InputError for a layout of the method that is not this one."""
    first_zero(config)


def first_zero(config: Mapping[str, Any]) -> int:
    found = str(config.get("checkpoint_format") or "gptq")
    if found not in _VERSIONS:
        raise unreadable(f"a GPTQ checkpoint in the layout {found[:40]!r}", f"the layouts {' and '.join(_VERSIONS)}")
    return _VERSIONS[found]


def _groups(parts: Mapping[str, Tensor], *, inputs: int, config: Mapping[str, Any]) -> Tensor:
    """int64 [I]: the group of each input."""
    if "g_idx" in parts:
        return parts["g_idx"].long()
    size = int(config.get("group_size", 128))
    return torch.arange(inputs) // (size if size > 0 else inputs)
