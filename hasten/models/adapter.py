"""What an adapter answers about its family: where are the layers, heads, FFN, norms, embeddings?

One adapter file per family; the rest of hasten asks these questions and never reaches
into a model by itself. An adapter inherits from the protocol here, whose answers fit the usual
case: one stack of layers, each with one attention and one feed-forward block.

Legend: A heads, K key/value heads, D width of a head, N neurons.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from hasten.models.settling import configs_of, number_layers, say

# What queries, keys and values are made of: equal names, equal inputs.
Reads = tuple[str, str, str]
MEMORY = "memory"  # the states of another stack, which every layer of this one reads
SELF: Reads = ("hidden", "hidden", "hidden")
CROSS: Reads = ("asking", MEMORY, MEMORY)
# What configs call the nonlinearity: Gemma has the second one too, for older readers.
_ACTIVATIONS = ("hidden_activation", "hidden_act", "activation_function", "activation", "dense_act_fn")


@dataclass(frozen=True, slots=True)
class AttentionParts:
    """The projections of an attention and its head geometry.

    A fused matrix stands in the place of ``query``, ``key`` and ``value`` at once: its outputs are the A D numbers of
    the queries, then K D of the keys and K D of the values. ``table`` is a table with a column for each head.
    ``fixed`` says why no head can be taken out, if so. ``settle`` tells the attention module how many heads its
    weights have, where transformers keeps such a number beside them.
    """

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear
    heads: int
    head_dim: int
    kv_heads: int | None = None  # where several queries share a key: how many keys
    reads: Reads = SELF
    table: nn.Embedding | None = None
    fixed: str | None = None
    settle: Callable[[], None] | None = None

    @property
    def fused(self) -> bool:
        return self.query is self.key

    @property
    def cross(self) -> bool:
        """Do keys and values come from another stack than the queries?"""
        return self.reads == CROSS

    @property
    def inputs(self) -> tuple[nn.Linear, ...]:
        """The matrices in front of the attention, each once."""
        return (self.query,) if self.fused else (self.query, self.key, self.value)

    @property
    def groups(self) -> int:
        """The units that can be taken out: a key/value head with all its queries, which is a head where A = K."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def group_dim(self) -> int:
        """Inputs of the output projection that belong to one group: A / K D."""
        return self.heads // self.groups * self.head_dim


@dataclass(frozen=True, slots=True)
class FeedForward:
    """hidden -> inner (``up``, times the activated ``gate`` where there is one) -> hidden (``down``).

    A fused matrix stands in the place of ``gate`` and ``up`` at once: its outputs are the N numbers of the gate, then
    the N of up.
    """

    up: nn.Linear
    down: nn.Linear
    gate: nn.Linear | None = None

    @property
    def fused(self) -> bool:
        return self.gate is self.up

    @property
    def inputs(self) -> tuple[nn.Linear, ...]:
        """The matrices in front of the neurons, each once."""
        return (self.up,) if self.gate is None or self.fused else (self.gate, self.up)

    @property
    def neurons(self) -> int:
        return self.down.in_features


@dataclass(frozen=True, slots=True)
class Stack:
    """Layers that run one after the other, each listed once; ``shared``: some or all of them run more than once.

    ``depth`` is how many layers a token passes.
    """

    name: str
    layers: nn.ModuleList
    depth: int
    shared: bool = False


class Adapter(Protocol):
    """The questions. ``model`` is a Hugging Face model of the family, with or without a task head."""

    family: str

    @property
    def norm_first(self) -> bool:
        """Does a norm stand in front of each sublayer (GPT-2, Llama, ViT), and not behind each residual sum (BERT)?"""
        return False

    @property
    def sandwiched(self) -> bool:
        """Does a norm stand behind each sublayer too, before its residual sum (Gemma)?"""
        return False

    @property
    def rigid(self) -> str | None:
        """Why the width of the hidden states cannot change, if so."""
        return None

    def layers(self, model: nn.Module) -> nn.ModuleList:
        """The layers, first to last, each once; of an encoder-decoder, the encoder's."""
        ...

    def attention(self, layer: nn.Module) -> AttentionParts:
        """The layer's self-attention."""
        ...

    def ffn(self, layer: nn.Module) -> FeedForward:
        """The layer's feed-forward block. Raises Rejected where there is not exactly one."""
        ...

    def norms(self, layer: nn.Module) -> tuple[nn.Module, ...]:
        """The layer's norms in the order they run."""
        ...

    def scales(self, layer: nn.Module) -> tuple[nn.Parameter, ...]:
        """Learnt factors [H] behind the layer's sublayers, in the order they run."""
        del layer
        return ()

    def embeddings(self, model: nn.Module) -> nn.Module:
        """The embedding block (tables and norm)."""
        ...

    def tokens(self, model: nn.Module, row: Mapping[str, Any]) -> int:
        """How many tokens an input row makes; of an encoder-decoder, for the encoder."""
        del model
        return int(row["input_ids"].shape[1])

    def stacks(self, model: nn.Module) -> tuple[Stack, ...]:
        """All stacks of layers, in the order they run."""
        layers = self.layers(model)
        return (Stack("layers", layers, len(layers)),)

    def cross_attention(self, layer: nn.Module) -> AttentionParts | None:
        """The layer's attention to another stack's states, if it has one."""
        del layer
        return None

    def attentions(self, layer: nn.Module) -> tuple[AttentionParts, ...]:
        """All attentions of the layer, in the order they run."""
        crossing = self.cross_attention(layer)
        return (self.attention(layer),) if crossing is None else (self.attention(layer), crossing)

    def ffns(self, layer: nn.Module) -> tuple[FeedForward, ...]:
        """All feed-forward blocks of the layer: one after the other, or side by side as experts are."""
        return (self.ffn(layer),)

    def routers(self, layer: nn.Module) -> tuple[nn.Module, ...]:
        """What decides which experts run, and stays in high precision: a small error there changes the expert."""
        del layer
        return ()

    def computed(self, model: nn.Module) -> tuple[nn.Parameter, ...]:
        """Weights that are made and not learnt, such as sinusoids for positions: no training may move them."""
        del model
        return ()

    def prepare(self, model: nn.Module) -> None:
        """Put plain ``nn.Linear`` in the place of what the family stores otherwise, with the same outputs."""
        del model

    def loosen(self, model: nn.Module) -> None:
        """Undo what keeps heads from being taken out layer by layer (``fixed``), with the same outputs."""
        del model

    def lead(self, first: nn.Module, new: nn.Module) -> None:
        """Give what only a stack's ``first`` layer has to the layer that becomes its first."""
        del first, new

    def settle(self, model: nn.Module) -> None:
        """Make what transformers keeps beside the weights agree with them; after surgery, and after loading."""
        for stack in self.stacks(model):
            if not stack.shared:
                say(configs_of(model), num_hidden_layers=len(stack.layers))
                number_layers(stack.layers)
            settle_attentions(self, stack.layers)


def activation_name(config: Any) -> str:
    """The feed-forward blocks' nonlinearity, by transformers' name, wherever the family's config keeps it; else
    nothing."""
    return str(next((found for name in _ACTIVATIONS if (found := getattr(config, name, None))), ""))


def settle_attentions(adapter: Adapter, layers: nn.ModuleList) -> None:
    """Every attention of these layers, told how many heads it has."""
    for layer in layers:
        for parts in adapter.attentions(layer):
            if parts.settle is not None:
                parts.settle()
