"""DistilBERT: six post-norm layers with names of their own and no token types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from hasten.models.adapter import Adapter, AttentionParts, FeedForward


@dataclass(frozen=True, slots=True)
class DistilBert(Adapter):
    """Adapter for ``model.distilbert.transformer.layer[i]`` with q_lin, k_lin, v_lin, out_lin, lin1, lin2."""

    family: str = "distilbert"

    def layers(self, model: nn.Module) -> nn.ModuleList:
        found: nn.ModuleList = self._body(model).transformer.layer
        return found

    def attention(self, layer: Any) -> AttentionParts:
        own = layer.attention
        width = own.attention_head_size
        return AttentionParts(
            query=own.q_lin, key=own.k_lin, value=own.v_lin, output=own.out_lin,
            heads=own.q_lin.out_features // width, head_dim=width,
        )  # fmt: skip

    def ffn(self, layer: Any) -> FeedForward:
        return FeedForward(up=layer.ffn.lin1, down=layer.ffn.lin2)

    def norms(self, layer: Any) -> tuple[nn.LayerNorm, ...]:
        return (layer.sa_layer_norm, layer.output_layer_norm)

    def embeddings(self, model: nn.Module) -> nn.Module:
        found: nn.Module = self._body(model).embeddings
        return found

    def _body(self, model: Any) -> Any:
        return getattr(model, "distilbert", model)


DISTILBERT = DistilBert()
