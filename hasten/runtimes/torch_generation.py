"""Generation in PyTorch: transformers' own cache around the opened model, or the compiled graph.

Takes the model that :mod:`hasten.runtimes.torch` opened, gives a session. Eagerly, layers with a window forget what
is behind it. Compiled, keys and values go in and out as tensors, and sizes are symbols.

Legend: B rows, L tokens of the prompt, V tokens of the vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from hasten.records import Rejected
from hasten.runtimes.decoder_graph import DecoderGraph, decoder_slots, encoded
from hasten.runtimes.generation import DecodingSession, Generation
from hasten.runtimes.generation_facts import GenerationFacts
from hasten.runtimes.runtime import Array, Arrays
from hasten.tasks.generation_wrappers import positions, taken_by

# Prompts and numbers of rows after which every size is a symbol to the compiler.
_WARM_SHAPES = ((1, 8), (1, 24), (2, 24))
_WARM_TOKENS = 4


def generation_session(model: Any, facts: GenerationFacts, *, precision: str, compiled: bool) -> DecodingSession:
    """A session around ``model``. Raises Rejected when it cannot be compiled."""
    if not compiled:
        kind = TorchEncoderDecoder if facts.encoder else TorchDecoder
        return DecodingSession(lambda: kind(model), facts=facts, precision=precision)
    if facts.encoder:
        raise Rejected("compile", "an encoder-decoder is not compiled: its two caches go through eager PyTorch alone")
    fast = torch.compile(DecoderGraph(model), dynamic=True)
    empty = [(slot.heads, slot.size) for slot in decoder_slots(model)]
    session = DecodingSession(lambda: CompiledDecoder(fast, empty, dtype=model.dtype), facts=facts, precision=precision)
    _warm(session)
    return session


class TorchDecoder:
    """A decoder with transformers' cache."""

    def __init__(self, model: Any) -> None:
        self._model, self._given = model, taken_by(model, position_ids=True, logits_to_keep=1)
        self.reset()

    def prefill(self, arrays: Arrays, start: tuple[int, ...]) -> Array:
        del start
        self._mask = tensor(arrays["attention_mask"])
        self._cache = DynamicCache(config=self._model.config)
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
    """An encoder-decoder with transformers' two caches: its own past, and what the encoder read."""

    def __init__(self, model: Any) -> None:
        self._model, self._given = model, taken_by(model, logits_to_keep=1)
        self.reset()

    def prefill(self, arrays: Arrays, start: tuple[int, ...]) -> Array:
        source = tensor(arrays["input_ids"] if "input_ids" in arrays else arrays["input_features"])
        self._mask = tensor(arrays["attention_mask"]) if "attention_mask" in arrays else None
        with torch.inference_mode():
            if source.is_floating_point():
                source = source.to(self._model.dtype)
            self._states = BaseModelOutput(last_hidden_state=encoded(self._model, source, self._mask))
        # A config counts the encoder's layers: these caches grow with the layers that use them.
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
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
