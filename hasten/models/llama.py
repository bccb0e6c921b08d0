"""Llama and the families built the same way: Mistral, Qwen 2 and 3, SmolLM (which is Llama by name too), Phi-3.

Pre-norm decoder layers with RMS norms: self_attn.{q,k,v,o}_proj, where several queries may share a key, and
mlp.{gate,up,down}_proj. Qwen 3 normalizes queries and keys within a head. Phi-3 keeps queries, keys and values in one
matrix, and gate and up in another.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from hasten.models.adapter import Adapter, AttentionParts, FeedForward
from hasten.models.settling import configs_of, layer_kinds, say


@dataclass(frozen=True, slots=True)
class LlamaLike(Adapter):
    """Adapter for ``model.model.layers`` (or ``model.layers``)."""

    family: str

    @property
    def norm_first(self) -> bool:
        return True

    def layers(self, model: nn.Module) -> nn.ModuleList:
        found: nn.ModuleList = self.body(model).layers
        return found

    def attention(self, layer: Any) -> AttentionParts:
        own = layer.self_attn
        return AttentionParts(
            query=own.q_proj, key=own.k_proj, value=own.v_proj, output=own.o_proj,
            heads=own.q_proj.out_features // own.head_dim, head_dim=own.head_dim,
            kv_heads=own.k_proj.out_features // own.head_dim, settle=partial(_settle, own),
        )  # fmt: skip

    def ffn(self, layer: Any) -> FeedForward:
        return gated(layer.mlp)

    def norms(self, layer: Any) -> tuple[nn.Module, ...]:
        return (layer.input_layernorm, layer.post_attention_layernorm)

    def embeddings(self, model: nn.Module) -> nn.Module:
        found: nn.Module = self.body(model).embed_tokens
        return found

    def settle(self, model: nn.Module) -> None:
        Adapter.settle(self, model)
        say(configs_of(model), layer_types=layer_kinds(self.layers(model)))

    def body(self, model: Any) -> Any:
        """What holds the layers: the model without its head."""
        return getattr(model, "model", model)


@dataclass(frozen=True, slots=True)
class Phi3(LlamaLike):
    """Llama's layers with fused matrices."""

    def attention(self, layer: Any) -> AttentionParts:
        own = layer.self_attn
        heads, kv_heads = _fused_heads(own)
        return AttentionParts(
            query=own.qkv_proj, key=own.qkv_proj, value=own.qkv_proj, output=own.o_proj,
            heads=heads, head_dim=own.head_dim, kv_heads=kv_heads, settle=partial(_settle_fused, own),
        )  # fmt: skip

    def ffn(self, layer: Any) -> FeedForward:
        own = layer.mlp
        return FeedForward(up=own.gate_up_proj, down=own.down_proj, gate=own.gate_up_proj)


def gated(mlp: Any) -> FeedForward:
    """Of a module with gate_proj, up_proj and down_proj."""
    return FeedForward(up=mlp.up_proj, down=mlp.down_proj, gate=mlp.gate_proj)


def _settle(own: Any) -> None:
    """How many queries share a key."""
    own.num_key_value_groups = own.q_proj.out_features // own.k_proj.out_features


def _fused_heads(own: Any) -> tuple[int, int]:
    """Heads, and key/value heads: outputs of the fused matrix are queries, keys and values."""
    heads = own.o_proj.in_features // own.head_dim
    return heads, (own.qkv_proj.out_features // own.head_dim - heads) // 2


def _settle_fused(own: Any) -> None:
    heads, kv_heads = _fused_heads(own)
    own.num_key_value_heads, own.num_key_value_groups = kv_heads, heads // kv_heads
    shared = own.config.shared if isinstance(own.config, OwnHeads) else own.config
    own.config = shared if heads == shared.num_attention_heads else OwnHeads(shared, heads)


class OwnHeads:
    """A model's config, except for one attention's number of heads: Phi-3 asks it where its queries end."""

    def __init__(self, shared: Any, heads: int) -> None:
        self.__dict__.update(shared=shared, num_attention_heads=heads)

    def __getattr__(self, name: str) -> Any:
        if name == "shared" or name.startswith("__"):  # while it is being copied, or when it is asked for a protocol
            raise AttributeError(name)
        return getattr(self.shared, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.shared, name, value)


LLAMA = LlamaLike(family="llama")
MISTRAL = LlamaLike(family="mistral")
QWEN2 = LlamaLike(family="qwen2")
QWEN3 = LlamaLike(family="qwen3")
PHI3 = Phi3(family="phi3")
