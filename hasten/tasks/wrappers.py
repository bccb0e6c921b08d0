"""The modules that give every task one output tensor. Needs torch.

Legend: B rows, L tokens, H hidden size, C outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class LogitsWrapper(nn.Module):
    """token arrays [B, L] -> logits [B, C] of a ``...ForSequenceClassification``."""

    task = "text-classification"

    def __init__(self, hf: Any) -> None:
        super().__init__()
        self.hf = hf

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        logits: Tensor = self.hf(**_given(input_ids, attention_mask, token_type_ids)).logits
        return logits


class PooledWrapper(nn.Module):
    """token arrays [B, L] -> embeddings [B, H]: mean over real tokens or the first token, as trained."""

    task = "feature-extraction"

    def __init__(self, hf: Any, *, pooling: str, normalize: bool) -> None:
        super().__init__()
        self.hf, self.pooling, self.normalize = hf, pooling, normalize

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        states: Tensor = self.hf(**_given(input_ids, attention_mask, token_type_ids)).last_hidden_state
        if self.pooling == "cls":
            pooled = states[:, 0]
        else:
            mask = attention_mask.unsqueeze(-1).to(states.dtype)
            pooled = (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1.0)
        return torch.nn.functional.normalize(pooled, dim=-1) if self.normalize else pooled


def _given(input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None) -> dict[str, Tensor]:
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    return inputs if token_type_ids is None else {**inputs, "token_type_ids": token_type_ids}
