"""The seam of generation: what a session that writes text offers, and the one loop that all runtimes share.

A runtime gives a :class:`Decoder`, which keeps the keys and values of one batch between calls; :class:`DecodingSession`
makes a session of it. Token ids only: nothing here knows text, a tokenizer or a runtime library.

Legend: B rows, L tokens of the longest prompt, V tokens of the vocabulary.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np

from hasten.records import InputError
from hasten.runtimes.generation_facts import GenerationFacts
from hasten.runtimes.runtime import Array, Arrays, Session
from hasten.runtimes.sampling import Sampler


@dataclass(frozen=True, slots=True)
class Generation:
    """What to write: at most ``new_tokens`` a row, until one of ``ends``.

    ``ignore_ends`` always writes all of them (for measuring). ``temperature`` 0 takes the likeliest token; above it,
    ``top_k`` (0: all) and ``top_p`` bound what is drawn from, and ``seed`` with the row's number decides the draws.
    ``start`` are an encoder-decoder's first ids (empty: the model's own); ``never`` are ids that are not written,
    ``never_first`` such that are not written first.
    """

    new_tokens: int
    ends: tuple[int, ...] = ()
    ignore_ends: bool = False
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    start: tuple[int, ...] = ()
    never: tuple[int, ...] = ()
    never_first: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        bounds = (
            ("new_tokens", self.new_tokens >= 1, "1 or more"),
            ("ends", all(i >= 0 for i in self.ends), "token ids"),
            ("temperature", 0.0 <= self.temperature < float("inf"), "0 (the likeliest token) or more"),
            ("top_k", self.top_k >= 0, "0 (all tokens) or more"),
            ("top_p", 0.0 < self.top_p <= 1.0, "above 0, at most 1"),
            ("seed", self.seed >= 0, "0 or more"),
            ("start", all(i >= 0 for i in self.start), "token ids"),
            ("never", all(i >= 0 for i in self.never), "token ids"),
            ("never_first", all(i >= 0 for i in self.never_first), "token ids"),
        )
        for name, holds, expected in bounds:
            if not holds:
                raise InputError(f"{name} = {getattr(self, name)}", expected=expected, remedy=f"correct {name}")

    def allowed(self, logits: Array, number: int) -> Array:
        """The logits [B, V] of token ``number`` (0 is the first), with no chance left to what is not written there."""
        return _without(logits, self.never if number else (*self.never, *self.never_first))


class GenerativeSession(Session, Protocol):
    """A session whose :meth:`run` gives the logits of the token after the prompt [B, V], and which can go on."""

    facts: GenerationFacts

    def generate(self, arrays: Arrays, generation: Generation) -> Iterator[Array]:
        """The next ids int64 [B], once a token, until all rows have ended or ``new_tokens`` are there.

        ``input_ids`` and ``attention_mask`` are int64 [B, L], padded on the left (an encoder's on the right), or
        ``input_features`` float32. A row that has ended yields its end again. The first comes after the whole prompt
        was read, each other after one step, when it is asked for. Several iterators may be open at once. Raises
        InputError for rows that do not fit and Rejected when the model's numbers are not finite.
        """
        ...


class Decoder(Protocol):
    """The state of one batch that is being written, and how a runtime goes on with it."""

    def prefill(self, arrays: Arrays, start: tuple[int, ...]) -> Array:
        """Read the prompts (an encoder-decoder: the inputs, and ``start`` as first ids) -> logits float32 [B, V]."""
        ...

    def step(self, ids: Array) -> Array:
        """One more token of every row, int64 [B] -> the next logits float32 [B, V]."""
        ...

    def reset(self) -> None:
        """Forget the batch and free its keys and values."""
        ...


@runtime_checkable
class GreedyDecoder(Decoder, Protocol):
    """A decoder that finds the likeliest token without handing out the logits of all."""

    def first(self, arrays: Arrays, start: tuple[int, ...]) -> Array:
        """As :meth:`prefill` -> the likeliest ids int64 [B], the smaller of equals; Rejected as :class:`Sampler`."""
        ...

    def next(self, ids: Array) -> Array:
        """As :meth:`step` -> the likeliest ids int64 [B]."""
        ...


def generated(decoder: Decoder, arrays: Arrays, generation: Generation) -> Iterator[Array]:
    """The shared loop: read the prompt, choose, step, choose, ...; see :meth:`GenerativeSession.generate`."""
    free = generation.temperature == 0 and not generation.never and not generation.never_first
    choosing: GreedyDecoder | _Choosing = _Choosing(decoder, generation)
    if free and isinstance(decoder, GreedyDecoder):
        choosing = decoder
    ids = choosing.first(arrays, generation.start)
    ends, ended = np.asarray(generation.ends, dtype=np.int64), np.zeros(len(ids), dtype=bool)
    for number in range(generation.new_tokens):
        if number:
            ids = np.where(ended, ids, choosing.next(ids))
        if not generation.ignore_ends:
            ended |= np.isin(ids, ends)
        yield ids.copy()
        if ended.all():
            return


class _Choosing:
    """Chooses from the logits of a decoder, as ``generation`` says."""

    def __init__(self, decoder: Decoder, generation: Generation) -> None:
        self._decoder, self._asked = decoder, generation

    def first(self, arrays: Arrays, start: tuple[int, ...]) -> Array:
        logits, asked = self._decoder.prefill(arrays, start), self._asked
        self._choose = Sampler(
            rows=len(logits), temperature=asked.temperature, top_k=asked.top_k, top_p=asked.top_p, seed=asked.seed
        )
        return self._choose(asked.allowed(logits, 0))

    def next(self, ids: Array) -> Array:
        return self._choose(self._asked.allowed(self._decoder.step(ids), 1))


def _without(logits: Array, banned: tuple[int, ...]) -> Array:
    """The logits with no chance left to ``banned``; ids that the vocabulary has not are no matter."""
    if not banned:
        return logits
    ids = np.asarray(banned, dtype=np.int64)
    kept = logits.copy()  # a runtime may own them
    kept[:, ids[ids < logits.shape[1]]] = -np.inf
    return kept


class DecodingSession:
    """A session made of decoders: ``make`` gives a fresh one, and one that is done serves the next call."""

    def __init__(self, make: Callable[[], Decoder], *, facts: GenerationFacts, precision: str) -> None:
        self.facts, self.input_names, self.precision = facts, facts.input_names, precision
        self._make, self._idle, self._lock = make, list[Decoder](), threading.Lock()

    def run(self, arrays: Arrays) -> Array:
        """The logits of the token after each prompt, float32 [B, V]."""
        rows = len(next(iter(arrays.values())))
        return np.asarray(self.forced(arrays, np.empty((rows, 0), dtype=np.int64))[:, 0])

    def forced(self, arrays: Arrays, ids: Array) -> Array:
        """The logits before each of ``ids`` int64 [B, N] when these are written, and after the last one, step by step
        through the cache: float32 [B, N + 1, V]."""
        return np.stack(list(self._forced(arrays, ids)), axis=1)

    def ranked_first(self, arrays: Arrays, ids: Array, generation: Generation) -> Array:
        """What would be taken in the place of each of ``ids`` int64 [B, N], greedily and among what may be written,
        when those before it are: int64 [B, N]."""
        logits = self._forced(arrays, ids[:, :-1])
        return np.stack([generation.allowed(own, n).argmax(axis=-1) for n, own in enumerate(logits)], axis=1)

    def _forced(self, arrays: Arrays, ids: Array) -> Iterator[Array]:
        """The logits [B, V] before each of ``ids``, and after the last one."""
        self.facts.check(arrays, new_tokens=ids.shape[1] + 1, start=self.facts.start)
        with self._decoder() as decoder:
            yield decoder.prefill({name: arrays[name] for name in self.input_names}, self.facts.start)
            for column in ids.T:
                yield decoder.step(column)

    def generate(self, arrays: Arrays, generation: Generation) -> Iterator[Array]:
        """See :meth:`GenerativeSession.generate`; closing the iterator early frees what it holds."""
        start = generation.start or self.facts.start
        self.facts.check(arrays, new_tokens=generation.new_tokens, start=start)
        given = {name: arrays[name] for name in self.input_names}
        return self._generated(given, replace(generation, start=start))

    def close(self) -> None:
        with self._lock:
            self._idle.clear()
            self._make = _closed  # it holds the model

    def _generated(self, arrays: Arrays, generation: Generation) -> Iterator[Array]:
        with self._decoder() as decoder:
            yield from generated(decoder, arrays, generation)

    @contextmanager
    def _decoder(self) -> Iterator[Decoder]:
        with self._lock:
            decoder = self._idle.pop() if self._idle else None
        decoder = decoder or self._make()
        try:
            yield decoder
        finally:
            decoder.reset()
            with self._lock:
                self._idle.append(decoder)


def _closed() -> Decoder:
    raise RuntimeError("the session was closed")
