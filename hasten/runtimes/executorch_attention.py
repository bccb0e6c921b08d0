"""Attention of one row, written so that XNNPACK can take it whole.

XNNPACK reshapes to one free size at most. Plain attention over rows and heads reshapes its scores [B, A, L, T] around
every product, and two of their sizes are free even where B is one: a layer then falls into eight or nine parts. With
products over heads alone, all that is left outside are its norms.

Legend: B rows (one here), A heads, K heads of keys and values, L tokens that ask, T tokens that are asked, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ONE_ROW = "hasten_one_row"


def register_one_row() -> str:
    """Make it known to transformers, with masks that are added to the scores; gives its name."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(ONE_ROW, one_row_attention)
    AttentionMaskInterface.register(ONE_ROW, eager_mask)
    return ONE_ROW


def one_row_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
    scaling: float | None = None, softcap: float | None = None, position_bias: Tensor | None = None, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """query [1, A, L, D], key and value [1, K, T, D], mask and bias [1, 1 or A, L, T] -> [1, L, A, D]."""
    del module
    heads, width = query.shape[1], query.shape[3]
    keys, values = (_of_heads(states, heads) for states in (key, value))
    scores = torch.bmm(query.reshape(heads, -1, width), keys.transpose(1, 2))
    scores = scores * (width**-0.5 if scaling is None else scaling)
    if position_bias is not None:
        scores = scores + position_bias[0]
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = scores + attention_mask[0]
    found = torch.bmm(torch.softmax(scores, dim=-1), values)
    return found.transpose(0, 1).reshape(1, -1, heads, values.shape[2]), None


def _of_heads(states: Tensor, heads: int) -> Tensor:
    """[1, K, T, D] -> [A, T, D]: each head of keys or values for all the heads that ask it."""
    _, own, _, width = states.shape
    if own != heads:
        states = states.transpose(0, 1).expand(-1, heads // own, -1, -1)
    return states.reshape(heads, -1, width)
