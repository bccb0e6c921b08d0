"""Generation with the native engine: prompts are read in pieces without their padding, rows are written together.

Takes a wrapper that writes text and gives the bundle's files, takes those and gives a session; opening needs the native
library and numpy alone. The program is made in ``native_decoders``; the cache is paged (``native_pages``), and each
batch has its own.

Legend: B rows, L tokens of the longest prompt, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.native.cache import CacheKind
from hasten.records import Rejected
from hasten.runtimes.generation import DecodingSession
from hasten.runtimes.generation_facts import GenerationFacts, with_cache
from hasten.runtimes.native_pages import Pages, Places
from hasten.runtimes.native_sessions import FORMAT, PRECISIONS, flat
from hasten.runtimes.runtime import Array, Arrays

if TYPE_CHECKING:
    from hasten.native.engine import Engine, Writing

# Tokens of prompts that are read in one call: weights are read once for them, and the scratch memory stays small.
_TOGETHER = 256
# A cache is made before the program can say that it does not fit: numbers of a token in all layers together.
_MOST_LAYERS, _MOST_WIDTH = 4096, 1 << 22


@dataclass(frozen=True, slots=True)
class WriterFacts:
    """``layers``: key heads and their width of each layer's cache; ``best``: the buffer of the likeliest token."""

    precision: str
    layers: tuple[tuple[int, int], ...]
    best: int

    def to_dict(self) -> dict[str, Any]:
        return {"format": FORMAT, "precision": self.precision, "layers": self.layers, "best": self.best}


def writer_facts(read: Any) -> WriterFacts:
    """From JSON. Raises ValueError for anything but what :meth:`WriterFacts.to_dict` gives."""
    given: Mapping[str, Any] = read if isinstance(read, Mapping) else {}
    layers, best = given.get("layers"), given.get("best")
    fine = (
        given.get("format") == FORMAT
        and given.get("precision") in PRECISIONS
        and isinstance(layers, list)
        and len(layers) <= _MOST_LAYERS
        and all(_is_layer(layer) for layer in layers)
        and sum(heads * width for heads, width in layers) <= _MOST_WIDTH
        and type(best) is int
        and best >= 0
    )
    if not fine or not isinstance(layers, list) or not isinstance(best, int):
        raise ValueError(f"its facts do not say how a cache is made (format {given.get('format')!r})")
    return WriterFacts(str(given["precision"]), tuple((int(a), int(b)) for a, b in layers), best)


def _is_layer(found: Any) -> bool:
    return isinstance(found, list) and len(found) == 2 and all(type(n) is int and n > 0 for n in found)


class NativeDecoder:
    """One batch: the pages of its rows, and an engine that others use too."""

    def __init__(self, engine: Engine, facts: WriterFacts, *, kind: CacheKind) -> None:
        self._engine, self._best = engine, facts.best
        self._writing: Writing | None = None
        self._pages = Pages(facts.layers, kind=kind)

    def prefill(self, arrays: Arrays, start: tuple[int, ...]) -> Array:
        del start
        return self._read(arrays, output=None)

    def step(self, ids: Array) -> Array:
        return self._say(flat(ids, None), self._pages.take_one(), np.ones(len(ids), np.int32), output=None)

    def first(self, arrays: Arrays, start: tuple[int, ...]) -> Array:
        del start
        return _likeliest(self._read(arrays, output=self._best))

    def next(self, ids: Array) -> Array:
        return _likeliest(self._write(ids))

    def reset(self) -> None:
        self._pages.clear()
        self._writing = None  # it holds the old cache

    def _read(self, arrays: Arrays, *, output: int | None) -> Array:
        """What the engine says behind each prompt [B, ...]."""
        from hasten.native.engine import NOTHING

        real = arrays["attention_mask"] != 0
        lengths = real.sum(axis=1, dtype=np.int64)
        ids, starts = flat(arrays["input_ids"], real), np.cumsum(lengths) - lengths
        self._pages.begin(lengths)
        answers: list[Array] = []
        for rows, counts in _pieces(lengths):
            begin = starts[rows[0]] + self._pages.lengths[rows[0]]
            piece = ids[begin : begin + counts.sum()]
            ended = self._pages.lengths[rows] + counts == lengths[rows]
            made = self._forward(rows, counts, piece, output=output if ended.any() else NOTHING)
            answers += [row for row, last in zip(made, ended, strict=False) if last]
        return np.stack(answers)

    def _forward(self, rows: Array, counts: Array, ids: Array, *, output: int | None) -> Array:
        return self._say(ids, self._pages.take(rows, counts), counts.astype(np.int32), output=output)

    def _write(self, ids: Array) -> Array:
        """What the search says behind one token more of every row, until the next one."""
        places, writing = self._pages.take_one(), self._writing
        cache = self._pages.cache
        if writing is None or not writing.goes_on(places.tables, cache, self._best):
            writing = self._writing = self._engine.writing(places.tables, cache=cache, output=self._best)
        writing.ids[:] = flat(ids, None)
        writing.positions[:], writing.slots[:] = places.positions, places.slots
        return writing.step()

    def _say(self, ids: Array, places: Places, lengths: Array, *, output: int | None) -> Array:
        return self._engine.forward(
            ids, positions=places.positions, slots=places.slots, tables=places.tables, lengths=lengths,
            cache=self._pages.cache, output=output,
        )  # fmt: skip


class NativeWriter(DecodingSession):
    """Ends the engine's threads when it is closed."""

    def __init__(self, engine: Engine, own: WriterFacts, facts: GenerationFacts, *, kv_cache: CacheKind | None) -> None:
        kind = cache_kind(own.precision, kv_cache)
        super().__init__(
            lambda: NativeDecoder(engine, own, kind=kind), facts=facts, precision=with_cache(own.precision, kv_cache)
        )
        self._engine = engine
        _check(NativeDecoder(engine, own, kind=kind))

    def close(self) -> None:
        super().close()
        self._engine.close()


def cache_kind(precision: str, kv_cache: CacheKind | None) -> CacheKind:
    """In which numbers keys and values are kept: as asked for, else bf16, in fp32 models fp32. Rounded products leave
    nothing behind that more bits would keep."""
    return kv_cache or ("fp32" if precision == "fp32" else "bf16")


def writer_of(engine: Engine, folder: Path, *, kv_cache: CacheKind | None, read: Any) -> NativeWriter:
    """The session of a folder whose ``model.json`` was ``read``. Raises ValueError and InputError."""
    from hasten.runtimes.generation_facts import read_facts

    return NativeWriter(engine, writer_facts(read), read_facts(folder), kv_cache=kv_cache)


def _check(decoder: NativeDecoder) -> None:
    """One token through the program: facts of another one show here. Raises ValueError and InputError."""
    one = np.zeros((1, 1), np.int64)
    arrays = {"input_ids": one, "attention_mask": one + 1}
    best, logits = decoder._read(arrays, output=decoder._best), decoder.prefill(arrays, ())
    if best.shape != (1, 2) or len(logits) != 1:
        raise ValueError("the program gives no likeliest token of each row, which is not what its facts say")
    decoder.reset()


def _pieces(lengths: Array) -> Iterator[tuple[Array, Array]]:
    """Sequences, and how many tokens of each, for one call after the other."""
    rows, counts, left = list[int](), list[int](), _TOGETHER
    for row, length in enumerate(lengths.tolist()):
        while length:
            some = min(length, left)
            rows.append(row)
            counts.append(some)
            length, left = length - some, left - some
            if not left:
                yield np.array(rows), np.array(counts)
                rows, counts, left = [], [], _TOGETHER
    if rows:
        yield np.array(rows), np.array(counts)


def _likeliest(best: Array) -> Array:
    """int64 [B] of the largest logits and their numbers [B, 2]. Raises Rejected where they are none."""
    if not np.isfinite(best).all() or best[:, 1].min() < 0:
        raise Rejected("generate", "the logits of the next token are not finite numbers")
    return best[:, 1].astype(np.int64)
