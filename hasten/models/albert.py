"""ALBERT: one post-norm layer that runs again and again.

``layers`` lists each set of weights once (most often there is a single one), so what is done to a layer is done in
every place where it runs: all copies lose the same heads and neurons, and a matrix is rounded once. Dropping layers
means that the layer runs fewer times (``config.num_hidden_layers``); which of its turns goes makes no difference, as
all are the same. Checkpoints with several groups of layers keep their depth: another one would give the groups other
turns. A pass that walks through the layers one after the other is refused, since it would see only the first turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from hasten.models.adapter import Adapter, AttentionParts, FeedForward, Stack


@dataclass(frozen=True, slots=True)
class Albert(Adapter):
    """Adapter for ``model.albert.encoder.albert_layer_groups[g].albert_layers[i]``."""

    family: str = "albert"

    def layers(self, model: nn.Module) -> nn.ModuleList:
        groups = self._body(model).encoder.albert_layer_groups
        if len(groups) == 1:
            found: nn.ModuleList = groups[0].albert_layers
            return found
        return nn.ModuleList(layer for group in groups for layer in group.albert_layers)

    def stacks(self, model: nn.Module) -> tuple[Stack, ...]:
        config = self._body(model).config
        depth = int(config.num_hidden_layers) * int(config.inner_group_num)
        return (Stack("layers", self.layers(model), depth, shared=True),)

    def attention(self, layer: Any) -> AttentionParts:
        own = layer.attention
        width = own.attention_head_size
        return AttentionParts(
            query=own.query, key=own.key, value=own.value, output=own.dense,
            heads=own.query.out_features // width, head_dim=width,
        )  # fmt: skip

    def ffn(self, layer: Any) -> FeedForward:
        return FeedForward(up=layer.ffn, down=layer.ffn_output)

    def norms(self, layer: Any) -> tuple[nn.Module, ...]:
        return (layer.attention.LayerNorm, layer.full_layer_layer_norm)

    def embeddings(self, model: nn.Module) -> nn.Module:
        found: nn.Module = self._body(model).embeddings
        return found

    def _body(self, model: Any) -> Any:
        return getattr(model, "albert", model)


ALBERT = Albert()
