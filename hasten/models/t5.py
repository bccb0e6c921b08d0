"""T5 and Flan-T5: an encoder and a decoder of pre-norm layers, with learnt biases for distances instead of positions.

``block[i].layer`` holds the self-attention, in the decoder the attention to the encoder, and the feed-forward block
(gated in Flan-T5), each with its RMS norm. Only a stack's first self-attention has a table of biases by distance and
head, and all its layers add them to their scores. So no layer can lose heads by itself until :meth:`T5Like.loosen` has
given each a copy of the table, and the first layer's table goes with the place and not with the layer.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from hasten.models.adapter import CROSS, Adapter, AttentionParts, FeedForward, Stack, settle_attentions
from hasten.models.settling import configs_of, number_layers, say
from hasten.models.surgery import LowRankLinear

# Written into the config: every self-attention of this model has a table of its own.
OWN_TABLES = "hasten_own_tables"
_FIXED = "T5's layers add the same biases by head, so no layer can lose heads before each has its own (loosen)"


@dataclass(frozen=True, slots=True)
class T5Like(Adapter):
    """Adapter for ``model.encoder.block`` and ``model.decoder.block``; encoders alone have only the first."""

    family: str = "t5"

    @property
    def norm_first(self) -> bool:
        return True

    @property
    def rigid(self) -> str | None:
        return "T5 divides what its decoder says by the root of its width, which another width would change"

    def layers(self, model: nn.Module) -> nn.ModuleList:
        return self.stacks(model)[0].layers

    def stacks(self, model: nn.Module) -> tuple[Stack, ...]:
        found = [(name, getattr(self._body(model), name, None)) for name in ("encoder", "decoder")]
        return tuple(Stack(name, own.block, len(own.block)) for name, own in found if own is not None)

    def attention(self, layer: Any) -> AttentionParts:
        own = layer.layer[0].SelfAttention
        loose = own.has_relative_attention_bias and getattr(own, OWN_TABLES, False)
        return _parts(
            own, table=own.relative_attention_bias if loose else None, fixed=None if loose else _FIXED,
            settle=partial(_settle, own),
        )  # fmt: skip

    def cross_attention(self, layer: Any) -> AttentionParts | None:
        if len(layer.layer) == 2:
            return None
        own = layer.layer[1].EncDecAttention
        return _parts(own, reads=CROSS, settle=partial(_settle_cross, own))

    def ffn(self, layer: Any) -> FeedForward:
        own = layer.layer[-1].DenseReluDense
        if hasattr(own, "wi_0"):
            return FeedForward(up=own.wi_1, down=own.wo, gate=own.wi_0)
        return FeedForward(up=own.wi, down=own.wo)

    def norms(self, layer: Any) -> tuple[nn.Module, ...]:
        return tuple(sublayer.layer_norm for sublayer in layer.layer)

    def embeddings(self, model: nn.Module) -> nn.Module:
        found: nn.Module = self._body(model).shared
        return found

    def prepare(self, model: Any) -> None:
        if getattr(model.config, OWN_TABLES, False):
            self.loosen(model)

    def loosen(self, model: Any) -> None:
        setattr(model.config, OWN_TABLES, True)
        for stack in self.stacks(model):
            blocks: list[Any] = list(stack.layers)
            owns = [block.layer[0].SelfAttention for block in blocks]
            for own in owns:
                _give_table(own, owns[0].relative_attention_bias)

    def lead(self, first: Any, new: Any) -> None:
        old, own = first.layer[0].SelfAttention, new.layer[0].SelfAttention
        if not own.has_relative_attention_bias:
            own.relative_attention_bias, own.has_relative_attention_bias = old.relative_attention_bias, True
            del old.relative_attention_bias
            old.has_relative_attention_bias = False

    def settle(self, model: Any) -> None:
        counts = {stack.name: len(stack.layers) for stack in self.stacks(model)}
        configs = configs_of(model)
        say(configs, num_layers=counts["encoder"])
        if "decoder" in counts:
            say(configs, num_decoder_layers=counts["decoder"])
            self._body(model).decoder.config.num_layers = counts["decoder"]
        for stack in self.stacks(model):
            number_layers(stack.layers)
            settle_attentions(self, stack.layers)
            blocks: list[Any] = list(stack.layers)
            for block in blocks:
                _settle_factors(block.layer[-1].DenseReluDense)

    def _body(self, model: Any) -> Any:
        return getattr(model, "transformer", model)


def _parts(own: Any, **more: Any) -> AttentionParts:
    width = own.key_value_proj_dim
    return AttentionParts(
        query=own.q, key=own.k, value=own.v, output=own.o, heads=own.q.out_features // width, head_dim=width, **more
    )


def _settle(own: Any) -> None:
    own.n_heads, own.inner_dim = own.q.out_features // own.key_value_proj_dim, own.q.out_features


def _settle_cross(own: Any) -> None:
    """Here the number is only that of the zeros that stand for biases, and one head of them fits all layers' heads."""
    own.n_heads, own.inner_dim = 1, own.q.out_features


class _TypedFactors(LowRankLinear):
    """Factors in the place of the FFN's second matrix, at whose type T5 looks before it multiplies by it."""

    @property
    def weight(self) -> Tensor:
        return self.second.weight


def _settle_factors(ffn: Any) -> None:
    if type(ffn.wo) is LowRankLinear:
        bias = ffn.wo.second.bias is not None
        made = _TypedFactors(ffn.wo.in_features, ffn.wo.out_features, rank=ffn.wo.rank, bias=bias)
        made.first, made.second = ffn.wo.first, ffn.wo.second
        ffn.wo = made


def _give_table(own: Any, table: nn.Embedding) -> None:
    if not own.has_relative_attention_bias:
        own.relative_attention_bias, own.has_relative_attention_bias = copy.deepcopy(table), True
    if not getattr(own, OWN_TABLES, False):
        own.register_forward_pre_hook(_forget_biases, with_kwargs=True)
        setattr(own, OWN_TABLES, True)


def _forget_biases(_own: Any, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Without the biases of the layer before, the attention looks its own up."""
    return args, {**named, "position_bias": None}


T5 = T5Like()
