"""BERT and the families built the same way: MiniLM is BERT, RoBERTa, XLM-R and ELECTRA differ in name only.

Post-norm encoder layers: attention.self.{query,key,value}, attention.output.dense,
intermediate.dense, output.dense, with a LayerNorm after each residual sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from hasten.models.adapter import Adapter, AttentionParts, FeedForward


@dataclass(frozen=True, slots=True)
class BertLike(Adapter):
    """Adapter for encoders whose body is ``model.<body>`` (or the model itself) with BERT's layer layout."""

    family: str
    body: str

    def layers(self, model: nn.Module) -> nn.ModuleList:
        found: nn.ModuleList = self._body(model).encoder.layer
        return found

    def attention(self, layer: Any) -> AttentionParts:
        own = layer.attention.self
        return AttentionParts(
            query=own.query,
            key=own.key,
            value=own.value,
            output=layer.attention.output.dense,
            heads=own.query.out_features // own.attention_head_size,
            head_dim=own.attention_head_size,
        )

    def ffn(self, layer: Any) -> FeedForward:
        return FeedForward(up=layer.intermediate.dense, down=layer.output.dense)

    def norms(self, layer: Any) -> tuple[nn.LayerNorm, ...]:
        return (layer.attention.output.LayerNorm, layer.output.LayerNorm)

    def embeddings(self, model: nn.Module) -> nn.Module:
        found: nn.Module = self._body(model).embeddings
        return found

    def _body(self, model: Any) -> Any:
        return getattr(model, self.body, model)


BERT = BertLike(family="bert", body="bert")
