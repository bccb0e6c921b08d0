"""MobileBERT: thin layers between bottlenecks, with several feed-forward blocks one after the other.

A layer takes the hidden states down to its own width (``bottleneck``), computes there, and goes up again. Its norms may
be plain factors and shifts (``NoNorm``). Layers can be dropped, heads and each block's neurons taken out, matrices of
attention and blocks rounded; the bottlenecks stay as they are. Refused is what takes a layer for one attention and one
block (pruning under a budget, reconstruction, low rank), and another width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from hasten.models.adapter import SELF, Adapter, AttentionParts, FeedForward, Reads
from hasten.records import Rejected


@dataclass(frozen=True, slots=True)
class MobileBert(Adapter):
    """Adapter for ``model.mobilebert.encoder.layer[i]``."""

    family: str = "mobilebert"

    @property
    def rigid(self) -> str | None:
        return "MobileBERT's layers have one width inside and another outside"

    def layers(self, model: nn.Module) -> nn.ModuleList:
        found: nn.ModuleList = self._body(model).encoder.layer
        return found

    def attention(self, layer: Any) -> AttentionParts:
        own = layer.attention.self
        width = own.attention_head_size
        return AttentionParts(
            query=own.query, key=own.key, value=own.value, output=layer.attention.output.dense,
            heads=own.query.out_features // width, head_dim=width, reads=_reads(own.config),
        )  # fmt: skip

    def ffn(self, layer: Any) -> FeedForward:
        blocks = self.ffns(layer)
        if len(blocks) != 1:
            raise Rejected("family", f"a MobileBERT layer has {len(blocks)} feed-forward blocks, and this needs one")
        return blocks[0]

    def ffns(self, layer: Any) -> tuple[FeedForward, ...]:
        blocks = (*getattr(layer, "ffn", ()), layer)
        return tuple(FeedForward(up=block.intermediate.dense, down=block.output.dense) for block in blocks)

    def norms(self, layer: Any) -> tuple[nn.Module, ...]:
        """Those behind the residual sums inside the layer."""
        blocks = (*getattr(layer, "ffn", ()), layer)
        return (layer.attention.output.LayerNorm, *(block.output.LayerNorm for block in blocks))

    def embeddings(self, model: nn.Module) -> nn.Module:
        found: nn.Module = self._body(model).embeddings
        return found

    def _body(self, model: Any) -> Any:
        return getattr(model, "mobilebert", model)


def _reads(config: Any) -> Reads:
    """Queries and keys may come from a bottleneck of their own, values then from the states in front of it."""
    apart = config.use_bottleneck and config.key_query_shared_bottleneck and not config.use_bottleneck_attention
    return ("shared", "shared", "hidden") if apart else SELF


MOBILEBERT = MobileBert()
