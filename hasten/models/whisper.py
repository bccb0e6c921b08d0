"""Whisper: an encoder of sounds and a decoder of words, made of BART's parts with the norms in front.

Two convolutions make states of log-mel features, which then get sinusoids for positions; the decoder's positions are
learnt. Unlike BART's, its attentions count their heads beside the weights, and its keys have no bias. Behind each
stack's last layer stands one more norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from hasten.models.adapter import AttentionParts
from hasten.models.bart import BartLike

# Which of the decoder's heads follow the sound, by layer and number: times of words are read off them.
_FOLLOWING = "alignment_heads"


@dataclass(frozen=True, slots=True)
class WhisperLike(BartLike):
    """Adapter for ``model.model.{encoder,decoder}.layers`` (or the model's own)."""

    family: str = "whisper"

    @property
    def norm_first(self) -> bool:
        return True

    @property
    def rigid(self) -> str | None:
        return "a Whisper's states come out of convolutions and go into both stacks, whose width they share"

    def attention(self, layer: Any) -> AttentionParts:
        return _counted(BartLike.attention(self, layer), layer.self_attn)

    def cross_attention(self, layer: Any) -> AttentionParts | None:
        parts = BartLike.cross_attention(self, layer)
        return None if parts is None else _counted(parts, layer.encoder_attn)

    def embeddings(self, model: nn.Module) -> nn.Module:
        """The convolutions, the words' table, and the positions of both stacks."""
        body = self._body(model)
        front = (body.encoder.conv1, body.encoder.conv2, body.encoder.embed_positions)
        return nn.ModuleList([*front, body.decoder.embed_tokens, body.decoder.embed_positions])

    def computed(self, model: nn.Module) -> tuple[nn.Parameter, ...]:
        return (self._body(model).encoder.embed_positions.weight,)

    def tokens(self, model: Any, row: Mapping[str, Any]) -> int:
        """States that the convolutions make of a row's frames."""
        encoder = self._body(model).encoder
        return int(row["input_features"].shape[-1] // (encoder.conv1.stride[0] * encoder.conv2.stride[0]))

    def settle(self, model: Any) -> None:
        before = int(model.config.decoder_layers)
        BartLike.settle(self, model)
        settings = getattr(model, "generation_config", None)
        if before != int(model.config.decoder_layers) and hasattr(settings, _FOLLOWING):
            delattr(settings, _FOLLOWING)  # their numbers are those of other layers now


def _counted(parts: AttentionParts, own: Any) -> AttentionParts:
    return replace(parts, settle=partial(_count, own))


def _count(own: Any) -> None:
    own.num_heads = own.q_proj.out_features // own.head_dim


WHISPER = WhisperLike()
