"""Attention of single rows over a cache as it lies: spans of tokens, whoever reads them, against plain numpy."""

from __future__ import annotations

import errno
import itertools
import os
from typing import Any

import numpy as np
import pytest
from native_here import native_only
from native_reference import from_bf16

from hasten.native import library, missing
from hasten.native.cache import Cache, CacheKind
from hasten.native.engine import Engine
from hasten.native.program import Buffer, CachedAttention, Embed, Program
from hasten.native.tensors import Floats

pytestmark = native_only
F = np.float32
ISAS = ["portable"] if missing() else list(library().isas)
WORDS, SCALE, CAP = 50, 0.2, 8.0
# (heads, heads of keys, their width): heads that share a key in ones to sixes, widths that fill no register.
# More heads than items of many rows have queries (56), and tokens of which a tile is more than is fetched at once.
SHAPES = [(1, 1, 16), (4, 2, 20), (9, 3, 64), (4, 1, 48), (10, 2, 7), (6, 1, 130), (56, 8, 16), (12, 12, 64)]
# Tokens a row sees: less than a tile of 64, one, spans of one tile, of more, and of more than are fetched at once.
LENGTHS = [1, 63, 64, 65, 300, 1100, 1700]


def attention(heads: int, kv: int, d: int, *, window: int = 0) -> Program:
    """A token's word is its queries, keys and values."""
    width = (heads + 2 * kv) * d
    words = np.random.default_rng(heads * d).standard_normal((WORDS, width)).astype(F)
    ops = (Embed(0, 0, scale=1.0), CachedAttention(0, 1, 0, heads, kv, d, SCALE, window, CAP))
    return Program((Buffer(width), Buffer(heads * d)), (Floats(words),), ops, 1)


def expected(program: Program, tokens: Any, cache: Cache, slots: Any, *, rows: int) -> Any:
    """fp64 [rows, heads * d] of the last tokens, from what the cache holds."""
    op: Any = program.ops[1]
    words: Any = program.tensors[0].values  # type: ignore[union-attr]

    def kept(data: Any, scales: Any) -> Any:
        own = data[slots]
        if cache.kind == "int8":
            return own.astype(np.float64) * scales[slots][..., None]
        return (from_bf16(own) if cache.kind == "bf16" else own).astype(np.float64)

    keys, values = kept(cache.keys[0], cache.key_scales[0]), kept(cache.values[0], cache.value_scales[0])
    made = []
    for place in range(len(tokens) - rows, len(tokens)):
        low = max(0, place + 1 - op.window) if op.window else 0
        queries = words[tokens[place], : op.heads * op.head_dim].reshape(op.heads, op.head_dim).astype(np.float64)
        for head, query in enumerate(queries):
            own = head // (op.heads // op.kv_heads)
            scores = CAP * np.tanh(keys[low : place + 1, own] @ query * SCALE / CAP)
            weights = np.exp(scores - scores.max())
            made.append(weights @ values[low : place + 1, own] / weights.sum())
    return np.reshape(made, (rows, -1))


def step(engine: Engine, cache: Cache, texts: list[Any], tables: Any, *, begin: list[int]) -> Any:
    """Tokens of each text from its `begin` on."""
    positions = [np.arange(first, len(text)) for first, text in zip(begin, texts, strict=True)]
    size = cache.block_size
    slots = [table[at // size] * size + at % size for table, at in zip(tables, positions, strict=True)]
    return engine.forward(
        np.concatenate([text[first:] for first, text in zip(begin, texts, strict=True)]),
        positions=np.concatenate(positions), slots=np.concatenate(slots), tables=tables,
        lengths=[len(at) for at in positions], cache=cache,
    )  # fmt: skip


def filled(program: Program, texts: list[Any], *, kind: CacheKind, isa: str | None = None) -> tuple[Cache, Any]:
    """A cache that holds all tokens, in blocks that lie anywhere, and the texts' tables."""
    op: Any = program.ops[1]
    wide = -(-max(map(len, texts)) // 16)
    cache = Cache.empty([(op.kv_heads, op.head_dim)], blocks=wide * len(texts), kind=kind)
    tables = np.random.default_rng(2).permutation(wide * len(texts)).reshape(len(texts), wide).astype(np.int32)
    with Engine(program, threads=2, isa=isa) as engine:
        step(engine, cache, texts, tables, begin=[0] * len(texts))
    return cache, tables


def text_of(length: int) -> Any:
    return np.random.default_rng(length).integers(0, WORDS, length)


@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_single_rows_see_all_of_it(isa: str, shape: tuple[int, int, int], kind: CacheKind) -> None:
    """Sums in another order than the plain ones: fp32 rounding of up to 1,700 terms, a few times 1e-6 of their size."""
    lengths = LENGTHS if isa == ISAS[0] else LENGTHS[2:6]
    for length, window in itertools.product(lengths, (0, 90, 1200)):
        program = attention(*shape, window=window)
        text, rows = text_of(length), min(length, 1 + length % 3)
        cache, tables = filled(program, [text], kind=kind, isa=isa)
        at = np.arange(length)
        want = expected(program, text, cache, tables[0][at // 16] * 16 + at % 16, rows=rows)
        with Engine(program, threads=3, isa=isa) as engine:
            got = step(engine, cache, [text], tables, begin=[length - rows])
        np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max(), rtol=0)


@pytest.mark.parametrize("window", [0, 500])
def test_neither_threads_nor_neighbours_change_a_row(window: int) -> None:
    program = attention(9, 3, 64, window=window)
    texts = [text_of(length) for length in LENGTHS]
    cache, tables = filled(program, texts, kind="bf16")
    last = [len(text) - 1 for text in texts]
    with Engine(program, threads=1) as engine:
        alone = [
            step(engine, cache, [text], table[None], begin=[at])[0]
            for text, table, at in zip(texts, tables, last, strict=True)
        ]
    for threads in (1, 2, 3, 4, 16):
        with Engine(program, threads=threads) as engine:
            np.testing.assert_array_equal(step(engine, cache, texts, tables, begin=last), alone)


def test_a_row_that_is_no_number_stays_alone() -> None:
    """A key that is NaN spoils the heads of its row, and no other row's."""
    program = attention(4, 2, 16)
    texts = [text_of(300), text_of(300)]
    cache, tables = filled(program, texts, kind="fp32")
    cache.keys[0][tables[0][10] * 16 + 3, 1] = np.nan
    with Engine(program, threads=3) as engine:
        first, second = step(engine, cache, texts, tables, begin=[299, 299])
    assert np.isfinite(first[:32]).all()
    assert np.isnan(first[32:]).all()
    assert np.isfinite(second).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes that share memory")
def test_a_cache_is_its_process_own() -> None:
    cache = Cache.empty([(1, 8)], blocks=4, kind="fp32")
    if (child := os.fork()) == 0:
        cache.keys[0][:] = 1
        os._exit(0)
    os.waitpid(child, 0)
    assert not cache.keys[0].any()


def test_a_cache_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("hasten.native.cache.mmap.mmap", full)
    with pytest.raises(MemoryError, match="cache of 2048 bytes"):
        Cache.empty([(1, 8)], blocks=4, kind="fp32")
