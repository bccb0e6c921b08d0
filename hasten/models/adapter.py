"""What an adapter answers about its family: where are the layers, heads, FFN, norms, embeddings?

One adapter file per family; the rest of hasten asks these questions and never reaches
into a model by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import nn


@dataclass(frozen=True, slots=True)
class AttentionParts:
    """The four projections of a self-attention and its head geometry."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear
    heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class FeedForward:
    """hidden -> inner (``up``) -> hidden (``down``)."""

    up: nn.Linear
    down: nn.Linear


class Adapter(Protocol):
    """The questions. ``model`` is a Hugging Face model of the family, with or without a task head."""

    family: str

    def layers(self, model: nn.Module) -> nn.ModuleList:
        """The encoder's layers, first to last."""
        ...

    def attention(self, layer: nn.Module) -> AttentionParts:
        """The layer's self-attention."""
        ...

    def ffn(self, layer: nn.Module) -> FeedForward:
        """The layer's feed-forward block."""
        ...

    def norms(self, layer: nn.Module) -> tuple[nn.LayerNorm, ...]:
        """The layer's norms in the order they run."""
        ...

    def embeddings(self, model: nn.Module) -> nn.Module:
        """The embedding block (tables and norm)."""
        ...
