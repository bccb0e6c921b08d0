"""Codes of 1 to 8 bits in rows of 32-bit words, as GPTQ and compressed-tensors store them.

Code k of a row lies in bits k b to (k + 1) b - 1 of its words, lowest first, also across the end of a word; what is
left of a row's last word is zero.

Legend: R rows, C codes of a row, W words of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hasten.models.bit_packing import pack_bits, unpack_bits

# So many codes fill whole words, whatever their bits.
_WHOLE = 32


def pack_words(codes: Tensor, *, bits: int) -> Tensor:
    """uint8 [R, C] -> int32 [R, ceil(C bits / 32)]."""
    rows, count = codes.shape
    whole = nn.functional.pad(codes, (0, -count % _WHOLE))
    words = pack_bits(whole.flatten(), bits=bits).view(torch.int32).view(rows, -1)
    return words[:, : word_count(count, bits=bits)].contiguous()


def unpack_words(words: Tensor, *, bits: int, count: int) -> Tensor:
    """int32 [R, W] -> uint8 [R, count]. Raises ValueError when the words do not hold exactly so many codes."""
    wanted = word_count(count, bits=bits)
    if words.dtype != torch.int32 or words.ndim != 2 or words.shape[1] != wanted:
        raise ValueError(
            f"{count} codes of {bits} bits need rows of {wanted} words, and there are {tuple(words.shape)} of "
            f"{words.dtype}"
        )
    padded = -(-count // _WHOLE) * _WHOLE
    whole = nn.functional.pad(words, (0, padded * bits // 32 - wanted)).contiguous()
    codes = unpack_bits(whole.view(torch.uint8).flatten(), bits=bits, count=len(words) * padded)
    return codes.view(len(words), padded)[:, :count]


def word_count(count: int, *, bits: int) -> int:
    return -(-count * bits // 32)
