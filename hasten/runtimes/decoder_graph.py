"""Models that write text as functions of tensors alone: what exporters trace and compilers compile. Needs torch.

A decoder takes the keys and values of what it has read as inputs and gives those of everything as outputs, so that
one graph reads the prompt (a past of length 0) and takes every step. An encoder-decoder is two graphs: the first
reads the input and computes what the decoder's layers will look at, once; the second writes.

Legend: B rows, T tokens in this call, P in the past, S read by the encoder, V of the vocabulary; keys and values are
[B, heads, tokens, size]. Every layer says its own number of heads: pruned models differ from layer to layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache

from hasten.tasks.generation_wrappers import positions, taken_by

LOGITS = "logits"


@dataclass(frozen=True, slots=True)
class Slot:
    """One tensor of a cache: a layer's keys or values."""

    name: str
    heads: int
    size: int


class DecoderGraph(nn.Module):
    """input_ids [B, T], attention_mask [B, P + T], keys and values -> logits [B, V], keys and values."""

    def __init__(self, hf: Any) -> None:
        super().__init__()
        self.hf = hf
        self.train(hf.training)  # exporters leave the model in the mode of what they were given
        self._given = taken_by(hf, position_ids=True, logits_to_keep=1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        given = dict(self._given)
        if "position_ids" in given:
            given["position_ids"] = positions(attention_mask)[:, past[0].shape[2] :]
        cache = filled(past)
        logits = self.hf(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True, **given
        ).logits
        return (logits[:, -1].float(), *flat(cache))


class EncoderGraph(nn.Module):
    """input_ids and attention_mask [B, S], or input_features -> the keys and values of S for the decoder's layers."""

    def __init__(self, hf: Any) -> None:
        super().__init__()
        self.hf = hf
        self.train(hf.training)  # exporters leave the model in the mode of what they were given

    def forward(self, source: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, ...]:
        states = encoded(self.hf, source, attention_mask)
        cache = EncoderDecoderCache(*(Cache(layer_class_to_replicate=FirstLayer) for _ in range(2)))
        # One made-up token lets every layer compute its keys and values of S; exporters drop all else of it.
        first = torch.zeros_like(states[:, :1, 0], dtype=torch.long)
        self.hf.get_decoder()(input_ids=first, encoder_hidden_states=states, past_key_values=cache, use_cache=True)
        return flat(cache.cross_attention_cache)


class FirstLayer(DynamicLayer):  # type: ignore[misc]  # transformers' types are unknown here
    """A layer that is given keys and values once: joining them with nothing is more than some converters can do."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.keys, self.values, self.is_initialized = key_states, value_states, True
        return key_states, value_states


class CrossDecoderGraph(nn.Module):
    """input_ids [B, T], attention_mask [B, S] where ``masked``, keys and values of the past and then of S -> logits
    [B, V], keys and values of the past and T."""

    def __init__(self, hf: Any, *, masked: bool, width: int) -> None:
        super().__init__()
        self.hf, self._masked, self._width = hf, masked, width
        self.train(hf.training)

    def forward(self, input_ids: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        mask, tensors = (given[0], given[1:]) if self._masked else (None, given)
        past, cross = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
        cache = EncoderDecoderCache(filled(past), filled(cross))
        # Only its sizes are looked at: the keys and values of S are there.
        states = cross[0][:, 0, :, :1].expand(-1, -1, self._width)
        masks = {"attention_mask": mask} if self._masked else {}
        logits = self.hf(
            encoder_outputs=(states,), decoder_input_ids=input_ids, past_key_values=cache, use_cache=True, **masks
        ).logits
        return (logits[:, -1].float(), *flat(cache.self_attention_cache))


def decoder_slots(hf: Any) -> tuple[Slot, ...]:
    """A decoder's cache in order, as a short prompt leaves it."""
    ids, cache = torch.zeros(1, 2, dtype=torch.long), DynamicCache()
    with torch.inference_mode():
        hf(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache, use_cache=True)
    return named(flat(cache))


def cross_slots(hf: Any, source: Tensor) -> tuple[tuple[Slot, ...], tuple[Slot, ...], int]:
    """An encoder-decoder's own past, what it keeps of the encoder, and the width of the encoder's states."""
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    with torch.inference_mode():
        states = encoded(hf, source, None)
        ids = torch.zeros(len(source), 1, dtype=torch.long)
        hf(encoder_outputs=(states,), decoder_input_ids=ids, past_key_values=cache, use_cache=True)
    return named(flat(cache.self_attention_cache)), named(flat(cache.cross_attention_cache)), states.shape[-1]


def encoded(hf: Any, source: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The encoder's last states [B, S, width]."""
    masks = {} if attention_mask is None else {"attention_mask": attention_mask}
    states: Tensor = hf.get_encoder()(source, **masks).last_hidden_state
    return states


def filled(tensors: Sequence[Tensor]) -> DynamicCache:
    """A cache that holds ``tensors``: keys and values of the layers by turns. All layers keep everything: where a
    window hides what is far, the mask does."""
    cache = DynamicCache()
    for keys, values in zip(tensors[::2], tensors[1::2], strict=True):
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


def flat(cache: Any) -> tuple[Tensor, ...]:
    """Keys and values of the layers by turns."""
    return tuple(tensor for layer in cache.layers for tensor in (layer.keys, layer.values))


def named(tensors: Sequence[Tensor]) -> tuple[Slot, ...]:
    """Names and sizes of a cache's tensors."""
    parts = ("key", "value")
    return tuple(
        Slot(f"{number // 2}.{parts[number % 2]}", heads=tensor.shape[1], size=tensor.shape[3])
        for number, tensor in enumerate(tensors)
    )
