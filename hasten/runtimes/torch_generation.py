"""Generation in PyTorch: transformers' own cache around the opened model, one in 8 bits, or the compiled graph.

Takes the model that :mod:`hasten.runtimes.torch` opened, gives a session. Eagerly, layers with a window forget what
is behind it. Compiled, keys and values go in and out as tensors, and sizes are symbols.

Legend: B rows, L tokens of the prompt, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from hasten.records import Rejected
from hasten.runtimes.decoder_graph import DecoderGraph, decoder_slots, encoded
from hasten.runtimes.generation import DecodingSession, Generation
from hasten.runtimes.generation_facts import GenerationFacts, with_cache
from hasten.runtimes.int8_cache import int8_cache
from hasten.runtimes.runtime import Array, Arrays
from hasten.tasks.generation_wrappers import positions, taken_by

# Prompts and numbers of rows after which every size is a symbol to the compiler.
_WARM_SHAPES = ((1, 8), (1, 24), (2, 24))
_WARM_TOKENS = 4


Fresh = Callable[[], Any]


def generation_session(
    model: Any, facts: GenerationFacts, *, precision: str, compiled: bool = False, kv_cache: str | None = None
) -> DecodingSession:
    """A session around ``model``; ``kv_cache`` "int8" rounds what it keeps. Raises Rejected when it cannot be compiled,
    or keeps what cannot be rounded."""
    if compiled and kv_cache:
        raise Rejected("compile", f"kv_cache {kv_cache}: the compiled graph keeps its cache in its own precision")
    if not compiled:
        kind = TorchEncoderDecoder if facts.encoder else TorchDecoder
        fresh = _cache_of(model, encoder=facts.encoder, kv_cache=kv_cache)
        fresh()  # what cannot be kept is better said now than at the first prompt
        return DecodingSession(lambda: kind(model, fresh), facts=facts, precision=with_cache(precision, kv_cache))
    if facts.encoder:
        raise Rejected("compile", "an encoder-decoder is not compiled: its two caches go through eager PyTorch alone")
    fast = torch.compile(DecoderGraph(model), dynamic=True)
    empty = [(slot.heads, slot.size) for slot in decoder_slots(model)]
    session = DecodingSession(lambda: CompiledDecoder(fast, empty, dtype=model.dtype), facts=facts, precision=precision)
    _warm(session)
    return session


def _cache_of(model: Any, *, encoder: bool, kv_cache: str | None) -> Fresh:
    """What makes an empty cache. An encoder-decoder's config counts the encoder's layers: its caches grow with the
    layers that use them."""
    config = None if encoder else model.config
    return partial(int8_cache, config) if kv_cache == "int8" else partial(DynamicCache, config=config)


class TorchDecoder:
    """A decoder with a cache that ``fresh`` makes."""

    def __init__(self, model: Any, fresh: Fresh) -> None:
        self._model, self._given = model, taken_by(model, position_ids=True, logits_to_keep=1)
        self._fresh = fresh
        self.reset()

    def prefill(self, arrays: Arrays, start: tuple[int, ...]) -> Array:
        del start
        self._mask = tensor(arrays["attention_mask"])
        self._cache = self._fresh()
        return self._forward(tensor(arrays["input_ids"]))

    def step(self, ids: Array) -> Array:
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(ids), 1)], dim=1)
        return self._forward(tensor(ids)[:, None])

    def reset(self) -> None:
        self._cache, self._mask = None, torch.zeros(0, 0, dtype=torch.long)

    def _forward(self, ids: Tensor) -> Array:
        given = dict(self._given)
        if "position_ids" in given:
            given["position_ids"] = positions(self._mask)[:, -ids.shape[1] :]
        with torch.inference_mode():
            logits = self._model(
                input_ids=ids, attention_mask=self._mask, past_key_values=self._cache, use_cache=True, **given
            ).logits
            return logits_of(logits[:, -1])


class CompiledDecoder:
    """The compiled graph, and the tensors that one batch's calls hand on."""

    def __init__(self, graph: Any, empty: list[tuple[int, int]], *, dtype: torch.dtype) -> None:
        self._graph, self._empty, self._dtype = graph, empty, dtype
        self._past: list[Tensor] = []
        self._mask = torch.zeros(0, 0, dtype=torch.long)

    def prefill(self, arrays: Arrays, start: tuple[int, ...]) -> Array:
        del start
        self._mask, rows = tensor(arrays["attention_mask"]), len(arrays["input_ids"])
        self._past = [torch.zeros(rows, heads, 0, size, dtype=self._dtype) for heads, size in self._empty]
        return self._forward(tensor(arrays["input_ids"]))

    def step(self, ids: Array) -> Array:
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(ids), 1)], dim=1)
        return self._forward(tensor(ids)[:, None])

    def reset(self) -> None:
        self._past, self._mask = [], torch.zeros(0, 0, dtype=torch.long)

    def _forward(self, ids: Tensor) -> Array:
        with torch.inference_mode():
            logits, *self._past = self._graph(ids, self._mask, *self._past)
            return logits_of(logits)


class TorchEncoderDecoder:
    """An encoder-decoder with two caches that ``fresh`` makes: its own past, and what the encoder read."""

    def __init__(self, model: Any, fresh: Fresh) -> None:
        self._model, self._given = model, taken_by(model, logits_to_keep=1)
        self._fresh = fresh
        self.reset()

    def prefill(self, arrays: Arrays, start: tuple[int, ...]) -> Array:
        source = tensor(arrays["input_ids"] if "input_ids" in arrays else arrays["input_features"])
        self._mask = tensor(arrays["attention_mask"]) if "attention_mask" in arrays else None
        with torch.inference_mode():
            if source.is_floating_point():
                source = source.to(self._model.dtype)
            self._states = BaseModelOutput(last_hidden_state=encoded(self._model, source, self._mask))
        self._cache = EncoderDecoderCache(self._fresh(), self._fresh())
        return self._forward(torch.tensor([start]).expand(len(source), -1))

    def step(self, ids: Array) -> Array:
        return self._forward(tensor(ids)[:, None])

    def reset(self) -> None:
        self._cache, self._states, self._mask = None, None, None

    def _forward(self, ids: Tensor) -> Array:
        masks = {} if self._mask is None else {"attention_mask": self._mask}
        with torch.inference_mode():
            logits = self._model(
                encoder_outputs=self._states, decoder_input_ids=ids, past_key_values=self._cache, use_cache=True,
                **masks, **self._given,
            ).logits  # fmt: skip
            return logits_of(logits[:, -1])


def forced_logits(wrapper: Any, arrays: Arrays, ids: Array) -> Array:
    """The logits before each of ``ids`` int64 [B, N] when these are written, and after the last one [B, N + 1, V]: one
    pass of the task's wrapper's model over prompts and ids together, without a cache."""
    given, follows, count = {name: tensor(array) for name, array in arrays.items()}, tensor(ids), ids.shape[1] + 1
    if wrapper.encoder:
        start = torch.tensor([wrapper.start]).expand(len(follows), -1)
        given["decoder_input_ids"] = torch.cat([start, follows], dim=1)
    else:
        mask = torch.cat([given["attention_mask"], torch.ones_like(follows)], dim=1)
        given = {"input_ids": torch.cat([given["input_ids"], follows], dim=1), "attention_mask": mask}
        given |= taken_by(wrapper.hf, position_ids=positions(mask))
    with torch.inference_mode():
        logits = wrapper.hf(**given, use_cache=False, **taken_by(wrapper.hf, logits_to_keep=count)).logits
        return logits_of(logits[:, -count:])


def tensor(array: Array) -> Tensor:
    """The array as a tensor, without a copy where it lies whole."""
    return torch.from_numpy(np.ascontiguousarray(array))


def logits_of(logits: Tensor) -> Array:
    """[B, V] in float32."""
    found: Array = logits.float().numpy()
    return found


def _warm(session: DecodingSession) -> None:
    """Compile now, not in the first request."""
    try:
        for rows, length in _WARM_SHAPES:
            ones = np.ones((rows, length), dtype=np.int64)
            given = {"input_ids": ones, "attention_mask": ones}
            for _ in session.generate(given, Generation(new_tokens=_WARM_TOKENS, ignore_ends=True)):
                pass
    except Exception as error:  # the compiler fails in a hundred ways; each is a finding for the ledger
        raise Rejected("compile", f"torch.compile failed: {str(error).strip().splitlines()[0][:200]}") from error
