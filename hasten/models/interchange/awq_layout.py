"""A matrix as AutoAWQ stores it for its "gemm" kernels, as floats.

Takes its parts, gives the weight [O, I] in fp32: (code - zero) scale in four bits. Codes and zeros are packed along the
outputs, eight to a word, and the four bits numbered n of a word are those of output ``ORDER[n]`` among the eight.

Legend: O outputs, I inputs, G groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hasten.models.interchange.parts import Quantized, unreadable
from hasten.models.interchange.words import unpack_words

MARK = "qweight"
PARTS = frozenset({"qweight", "qzeros", "scales"})
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_BITS = 4


def read(parts: Mapping[str, Tensor], of: Quantized) -> Tensor:
    """qweight int32 [I, O / 8], qzeros int32 [G, O / 8], scales [G, O]. Raises ValueError where they do not fit."""
    scales = parts["scales"].float()
    codes, zeros = (_columns(parts[name]).float() for name in ("qweight", "qzeros"))
    size = int(of.config.get("group_size", of.config.get("q_group_size", 128)))
    groups = torch.arange(len(codes)) // (size if size > 0 else len(codes))
    if zeros.shape != scales.shape or codes.shape[1] != scales.shape[1] or int(groups.max()) + 1 != len(scales):
        raise ValueError(
            f"{tuple(codes.shape)} codes in groups of {size}, {tuple(zeros.shape)} zeros, {tuple(scales.shape)} scales"
        )
    return ((codes - zeros[groups]) * scales[groups]).T.contiguous()


def check(config: Mapping[str, Any]) -> None:
    """Raise InputError for a layout of the method that is not this one."""
    layout = str(config.get("version") or config.get("checkpoint_format") or config.get("format") or "gemm").lower()
    bits = int(config.get("bits", config.get("w_bit", _BITS)))
    if layout != "gemm" or bits != _BITS:
        raise unreadable(f"an AWQ checkpoint in the layout {layout[:40]!r} of {bits} bits", "the layout gemm of 4 bits")


def _columns(words: Tensor) -> Tensor:
    """int32 [R, O / 8] -> uint8 [R, O]."""
    if words.ndim != 2:
        raise ValueError(f"codes are {tuple(words.shape)}")
    packed = unpack_words(words, bits=_BITS, count=words.shape[1] * 8).view(len(words), -1, 8)
    return packed[..., torch.tensor(ORDER).argsort()].flatten(start_dim=1)
