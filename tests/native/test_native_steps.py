"""Steps of a decoder over a paged cache against the whole sequence at once, on every instruction set of this host."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from native_here import native_only
from native_programs import weights
from native_reference import expected

from hasten.errors import InputError
from hasten.native import library, missing
from hasten.native.cache import Cache, CacheKind
from hasten.native.engine import NOTHING, Engine
from hasten.native.program import (
    Add,
    Attention,
    Buffer,
    CachedAttention,
    Embed,
    Features,
    HeadNorm,
    Linear,
    Norm,
    Pool,
    Program,
    Rotary,
    Top,
)
from hasten.native.tensors import Floats, Tensor

pytestmark = native_only
F = np.float32
ISAS = ["portable"] if missing() else list(library().isas)
HEADS, KV_HEADS, DIM, WIDTH, WORDS, PLACES = 6, 2, 20, 48, 90, 700
# What a cache of these kinds may take from a key or a value of size 1, times a little for what follows.
BOUNDS: dict[CacheKind, float] = {"fp32": 2e-5, "bf16": 2e-2, "int8": 5e-2}


def decoder(*, cached: bool, window: int = 0, kind: str = "fp32", top: int = 0, cap: float = 0.0) -> Program:
    """Two layers with rotary places, norms of heads, gates, and a head that shares the table of words."""
    random = np.random.default_rng(11)
    qkv = (HEADS + 2 * KV_HEADS) * DIM
    # The last fifth of a head is not turned.
    frequencies = 100.0 ** (-np.arange(DIM * 2 // 5) / (DIM // 2))
    tensors: list[Tensor] = [
        weights(random, kind, WORDS, WIDTH), Floats(frequencies.astype(F)),
        Floats(random.uniform(0.5, 1.5, DIM).astype(F)), Floats(random.uniform(-0.2, 0.2, WIDTH).astype(F)),
    ]  # fmt: skip
    ops: list[Any] = [Embed(0, 0, scale=3.0)]
    for layer in range(2):
        first = len(tensors)
        tensors += [
            weights(random, kind, qkv, WIDTH), weights(random, kind, WIDTH, HEADS * DIM),
            weights(random, kind, 2 * 70, WIDTH), weights(random, kind, WIDTH, 70),
        ]  # fmt: skip
        attention = (
            CachedAttention(2, 3, layer, HEADS, KV_HEADS, DIM, 0.3, window, cap)
            if cached
            else Attention(2, 3, HEADS, KV_HEADS, DIM, 0.3, True, window, cap)
        )
        ops += [
            Norm(0, 1, 3, None, 1e-6, "rms_plus_one"), Linear(1, 2, first), HeadNorm(2, 0, HEADS, DIM, 2, 1e-6),
            HeadNorm(2, HEADS, KV_HEADS, DIM, 2, 1e-6), Rotary(2, HEADS, KV_HEADS, DIM, 1, PLACES, 1.1), attention,
            Linear(3, 1, first + 1), Add(0, 1, 0), Norm(0, 1, 3, None, 1e-6, "rms_plus_one"),
            Linear(1, 4, first + 2, activation="gelu_tanh", gated=True), Linear(4, 0, first + 3, residual=0),
        ]  # fmt: skip
    ops += [Norm(0, 1, 3, None, 1e-6, "rms_plus_one"), Pool(1, 5, "last")]
    ops += [Top(5, 6, 0, count=top)] if top else [Linear(5, 6, 0)]
    widths = (WIDTH, WIDTH, qkv, HEADS * DIM, 70)
    buffers = (*map(Buffer, widths), Buffer(WIDTH, "sequence"), Buffer(2 * top or WORDS, "sequence"))
    return Program(buffers, tuple(tensors), tuple(ops), 6)


class Pages:
    """Sequences in blocks that lie anywhere."""

    def __init__(self, cache: Cache, *, seed: int = 0) -> None:
        self.cache, self.random = cache, np.random.default_rng(seed)
        self.free = [int(b) for b in self.random.permutation(cache.slots // cache.block_size)]
        self.tables: dict[int, list[int]] = {}
        self.told: dict[int, int] = {}

    def step(self, engine: Engine, rows: dict[int, list[int]]) -> Any:
        ids, positions, slots = [], [], []
        size = self.cache.block_size
        for name, tokens in rows.items():
            table, place = self.tables.setdefault(name, []), self.told.get(name, 0)
            for token in tokens:
                if place // size == len(table):
                    table.append(self.free.pop())
                ids.append(token), positions.append(place), slots.append(table[place // size] * size + place % size)
                place += 1
            self.told[name] = place
        most = max(len(self.tables[name]) for name in rows)
        tables = [self.tables[name] + [-1] * (most - len(self.tables[name])) for name in rows]
        return engine.forward(
            ids, positions=positions, slots=slots, tables=np.array(tables), lengths=list(map(len, rows.values())),
            cache=self.cache,
        )  # fmt: skip


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(4)


@pytest.mark.parametrize("window", [0, 9])
@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("isa", ISAS)
def test_steps_are_the_whole(isa: str, kind: CacheKind, window: int, random: np.random.Generator) -> None:
    """A prompt in chunks, single tokens, and another sequence between: the same as each sequence at once."""
    texts = {name: [int(t) for t in random.integers(0, WORDS, n)] for name, n in ((0, 45), (1, 70))}
    pages = Pages(Cache.empty([(KV_HEADS, DIM)] * 2, blocks=40, block_size=4, kind=kind))
    chunks = [{0: 20, 1: 1}, {0: 1, 1: 50}, {1: 1, 0: 1}, {0: 2, 1: 3}, {0: 1}, {1: 15}, {0: 20}]
    at = {0: 0, 1: 0}
    with Engine(decoder(cached=True, window=window), threads=2, isa=isa) as engine:
        for chunk in chunks:
            rows = {name: texts[name][at[name] : at[name] + n] for name, n in chunk.items()}
            got = pages.step(engine, rows)
            for (name, n), row in zip(chunk.items(), got, strict=True):
                at[name] += n
                whole = decoder(cached=False, window=window)
                want = expected(whole, texts[name][: at[name]], lengths=[at[name]])[0]
                np.testing.assert_allclose(row, want, atol=BOUNDS[kind] * np.abs(want).max(), rtol=0)


@pytest.mark.parametrize("isa", ISAS)
def test_long_sequences_go_through_blocks_of_keys(isa: str, random: np.random.Generator) -> None:
    tokens = [int(t) for t in random.integers(0, WORDS, 640)]
    pages = Pages(Cache.empty([(KV_HEADS, DIM)] * 2, blocks=50, block_size=16, kind="fp32"))
    want = expected(decoder(cached=False), tokens, lengths=[640])[0]
    with Engine(decoder(cached=True), threads=3, isa=isa) as engine:
        pages.step(engine, {0: tokens[:600]})
        pages.step(engine, {0: tokens[600:639]})
        got = pages.step(engine, {0: tokens[639:]})[0]
    np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max(), rtol=0)


@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8", "int5", "int4"])
@pytest.mark.parametrize("isa", ISAS)
def test_the_best_of_a_head_and_a_shared_table(isa: str, kind: str, random: np.random.Generator) -> None:
    """`Top` gives what a sort of all outputs gives, and the table of words is read from the head's panels."""
    tokens = [int(t) for t in random.integers(0, WORDS, 12)]

    def last(program: Program, threads: int) -> Any:
        with Engine(program, threads=threads, isa=isa) as engine:
            return Pages(Cache.empty([(KV_HEADS, DIM)] * 2, blocks=8, kind="fp32")).step(engine, {0: tokens})[0]

    everything = last(decoder(cached=True, kind=kind), 1)
    for threads in (1, 4):
        best = last(decoder(cached=True, kind=kind, top=7), threads)
        order = np.argsort(-everything, kind="stable")[:7]
        np.testing.assert_array_equal(best[7:].astype(int), order)
        np.testing.assert_array_equal(best[:7], everything[order])
    want = expected(decoder(cached=False, kind=kind), tokens, lengths=[12])[0]
    tolerance = 2e-5 if kind == "fp32" else 0.15  # codes of inputs may fall to the other side
    np.testing.assert_allclose(everything, want, atol=tolerance * np.abs(want).max(), rtol=0)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_of_equal_outputs_the_first_is_best_whoever_computed_it(threads: int) -> None:
    """Every fifth of 2,000 outputs is the largest: threads take their pieces in any order."""
    words = np.zeros((2000, 8), F)
    words[3::5] = 1.0
    program = Program(
        (Buffer(8), Buffer(8, "sequence"), Buffer(12, "sequence")),
        (Floats(words),),
        (Features(0), Pool(0, 1, "last"), Top(1, 2, 0, count=6)),
        2,
    )
    with Engine(program, threads=threads) as engine:
        for _ in range(20):
            best = engine.run(None, lengths=[1], features=np.ones((1, 8), F))[0]
            np.testing.assert_array_equal(best[6:], 3 + 5 * np.arange(6))
            np.testing.assert_array_equal(best[:6], 8.0)


@pytest.mark.parametrize("isa", ISAS)
def test_scores_are_softly_bounded_in_few_rows_and_many(isa: str, random: np.random.Generator) -> None:
    tokens = [int(t) for t in random.integers(0, WORDS, 40)]
    pages = Pages(Cache.empty([(KV_HEADS, DIM)] * 2, blocks=8, kind="fp32"))
    want = expected(decoder(cached=False, cap=0.7), tokens, lengths=[40])[0]
    assert np.abs(want - expected(decoder(cached=False), tokens, lengths=[40])[0]).max() > 1e-3
    with Engine(decoder(cached=True, cap=0.7), threads=2, isa=isa) as engine:
        pages.step(engine, {0: tokens[:30]})
        pages.step(engine, {0: tokens[30:39]})
        got = pages.step(engine, {0: tokens[39:]})[0]
    np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max(), rtol=0)


def test_a_program_may_end_in_logits_and_in_the_best_of_them(random: np.random.Generator) -> None:
    """Only what is asked for is computed: with the head's weights broken, the rest still runs."""
    whole = decoder(cached=True)
    ops, buffers = (*whole.ops, Top(5, 7, 0)), (*whole.buffers, Buffer(2, "sequence"))
    program = Program(buffers, whole.tensors, ops, 6)
    tokens = [int(t) for t in random.integers(0, WORDS, 12)]
    good: dict[str, Any] = {
        "positions": np.arange(12), "slots": np.arange(12), "tables": np.zeros((1, 1), np.int32), "lengths": [12],
        "cache": Cache.empty([(KV_HEADS, DIM)] * 2, blocks=1, kind="fp32"),
    }  # fmt: skip
    with Engine(program, threads=2) as engine:
        logits, best = engine.forward(tokens, **good)[0], engine.forward(tokens, **good, output=7)[0]
        assert engine.forward(tokens, **good, output=NOTHING).shape == (0, 0)
        assert best.tolist() == [logits.max(), logits.argmax()]
        for wrong in (0, 5, 8, -2, 2**40):
            with pytest.raises(InputError, match="as an answer"):
                engine.forward(tokens, **good, output=wrong)


def test_text_that_goes_on_is_what_single_steps_give(random: np.random.Generator) -> None:
    """The same arrays again and again, tables that change on the way, and an engine that is closed."""
    program = decoder(cached=True, top=1)
    text = [int(t) for t in random.integers(0, WORDS, 20)]
    one, other = (Pages(Cache.empty([(KV_HEADS, DIM)] * 2, blocks=9, block_size=4, kind="fp32")) for _ in range(2))
    with Engine(program, threads=2) as engine:
        wanted = [one.step(engine, {0: [token]}) for token in text]
        tables = np.full((1, 5), -1, np.int32)
        writing = engine.writing(tables, cache=other.cache, output=program.output)
        for place, token in enumerate(text):
            tables[0, place // 4] = 3 + place // 4
            writing.ids[:], writing.positions[:], writing.slots[:] = token, place, 12 + place
            np.testing.assert_array_equal(writing.step(), wanted[place])
        assert writing.goes_on(tables, other.cache, program.output)
        assert not writing.goes_on(tables.copy(), other.cache, program.output)
        writing.ids[:] = WORDS
        with pytest.raises(InputError, match="token id"):
            writing.step()
    with pytest.raises(InputError, match="closed"):
        writing.step()


def test_steps_that_do_not_fit() -> None:
    cache = Cache.empty([(KV_HEADS, DIM)] * 2, blocks=4, block_size=4)
    good: dict[str, Any] = {
        "positions": [0, 1], "slots": [0, 1], "tables": np.zeros((1, 1), np.int32), "lengths": [2], "cache": cache,
    }  # fmt: skip
    with Engine(decoder(cached=True)) as engine:
        assert engine.forward([1, 2], **good).shape == (1, WORDS)
        for change in (
            {"positions": [1, 1]}, {"positions": [-1, 0]}, {"positions": [0, 4]}, {"positions": [0, 2**30]},
            {"slots": [0, 16]}, {"slots": [-2, 0]}, {"slots": [0]}, {"tables": np.full((1, 1), 4)},
            {"tables": np.full((1, 1), -1)}, {"tables": np.zeros((1, 0))}, {"tables": np.zeros((2, 1))},
            {"lengths": [1]}, {"lengths": [0, 2]}, {"cache": Cache.empty([(KV_HEADS, DIM)], blocks=4, block_size=4)},
            {"cache": Cache.empty([(KV_HEADS, DIM - 1)] * 2, blocks=4, block_size=4)},
            {"cache": Cache.empty([(1, DIM)] * 2, blocks=4, block_size=4)},
        ):  # fmt: skip
            with pytest.raises(InputError):
                engine.forward([1, 2], **{**good, **change})
        with pytest.raises(InputError, match="token id"):
            engine.forward([1, WORDS], **good)
        with pytest.raises(InputError, match="forward"):
            engine.run([1, 2], lengths=[2])
