"""BART and Marian: an encoder and a decoder of post-norm layers.

``layers[i]`` holds self_attn, in the decoder encoder_attn, and fc1 and fc2, each with a LayerNorm behind its residual
sum. Marian computes its positions, BART has learnt them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from hasten.models.adapter import CROSS, SELF, Adapter, AttentionParts, FeedForward, Reads, Stack, settle_attentions
from hasten.models.settling import configs_of, number_layers, say


@dataclass(frozen=True, slots=True)
class BartLike(Adapter):
    """Adapter for ``model.model.{encoder,decoder}.layers`` (or the model's own)."""

    family: str

    @property
    def rigid(self) -> str | None:
        return f"a {self.family} may multiply its embeddings by the root of its width, which another width would change"

    def layers(self, model: nn.Module) -> nn.ModuleList:
        found: nn.ModuleList = self._body(model).encoder.layers
        return found

    def stacks(self, model: nn.Module) -> tuple[Stack, ...]:
        body = self._body(model)
        return tuple(
            Stack(name, own.layers, len(own.layers))
            for name, own in (("encoder", body.encoder), ("decoder", body.decoder))
        )

    def attention(self, layer: Any) -> AttentionParts:
        return _parts(layer.self_attn, reads=SELF)

    def cross_attention(self, layer: Any) -> AttentionParts | None:
        return _parts(layer.encoder_attn, reads=CROSS) if hasattr(layer, "encoder_attn") else None

    def ffn(self, layer: Any) -> FeedForward:
        return FeedForward(up=layer.fc1, down=layer.fc2)

    def norms(self, layer: Any) -> tuple[nn.Module, ...]:
        crossing = (layer.encoder_attn_layer_norm,) if hasattr(layer, "encoder_attn") else ()
        return (layer.self_attn_layer_norm, *crossing, layer.final_layer_norm)

    def embeddings(self, model: nn.Module) -> nn.Module:
        """The tables and norms of both stacks, without positions that are computed."""
        body = self._body(model)
        names = ("embed_tokens", "embed_positions", "layernorm_embedding")
        found = [getattr(own, name) for own in (body.encoder, body.decoder) for name in names if hasattr(own, name)]
        computed = {id(weight) for weight in self.computed(model)}
        return nn.ModuleList(module for module in found if id(module.weight) not in computed)

    def computed(self, model: nn.Module) -> tuple[nn.Parameter, ...]:
        body = self._body(model)
        tables = [own.embed_positions for own in (body.encoder, body.decoder)]
        return tuple(t.weight for t in tables if type(t).__name__.endswith("SinusoidalPositionalEmbedding"))

    def settle(self, model: nn.Module) -> None:
        encoder, decoder = self.stacks(model)
        say(configs_of(model), encoder_layers=len(encoder.layers), decoder_layers=len(decoder.layers))
        for stack in (encoder, decoder):
            number_layers(stack.layers)
            settle_attentions(self, stack.layers)

    def _body(self, model: Any) -> Any:
        return getattr(model, "model", model)


def _parts(own: Any, *, reads: Reads) -> AttentionParts:
    return AttentionParts(
        query=own.q_proj, key=own.k_proj, value=own.v_proj, output=own.out_proj,
        heads=own.q_proj.out_features // own.head_dim, head_dim=own.head_dim, reads=reads,
    )  # fmt: skip


BART = BartLike(family="bart")
MARIAN = BartLike(family="marian")
