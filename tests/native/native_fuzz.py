"""Runs random programs on random batches: shapes, kinds of weights, values, threads, instruction sets, broken words.

``python native_fuzz.py SEED COUNT``: a process of its own, because a library made for finding faults is loaded before
everything else. What it holds against what: any number of threads gives the same, rows with NaN or infinity stay where
they are, words that were changed are refused or run.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from native_programs import weights, with_words

from hasten.errors import InputError
from hasten.native import library
from hasten.native.cache import Cache
from hasten.native.engine import Engine
from hasten.native.program import (
    Activate,
    Add,
    Attention,
    Buffer,
    CachedAttention,
    Embed,
    Features,
    Foretell,
    HeadNorm,
    Linear,
    Norm,
    Normalize,
    Pool,
    Program,
    Rotary,
    Top,
)
from hasten.native.serialized import serialize
from hasten.native.tensors import Floats, Tensor

F = np.float32
ODD = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, -1e-42, 3e38, -3e38, 1e-30, 1.0, 65504.0]
KINDS = ["fp32", "bf16", "int8", "int5", "int4"]
ACTS = ["none", "gelu_erf", "gelu_tanh", "relu", "silu", "tanh"]
WORDS, PLACES = 37, 400
_BLOCKS = 45  # of eight tokens a sequence


def random_program(random: np.random.Generator, *, cached: bool) -> Program:
    """One or two layers of any shape."""
    d, kv = int(random.integers(1, 20)) * 2, int(random.integers(1, 4))
    heads, width, inner = kv * int(random.choice([1, 2, 3, 20])), int(random.integers(1, 90)), int(random.integers(130))
    qkv, window = (heads + 2 * kv) * d, int(random.choice([0, 0, 1, 11, 200]))
    cap = float(random.choice([0.0, 0.0, 3.0]))
    tensors: list[Tensor] = [
        weights(random, str(random.choice(KINDS)), WORDS, width), weights(random, "fp32", PLACES, width),
        Floats(random.uniform(-1, 1, int(random.integers(1, d // 2 + 1))).astype(F)),
        Floats(random.standard_normal(width).astype(F)), Floats(random.standard_normal(d).astype(F)),
    ]  # fmt: skip
    ops: list[Any] = [Embed(0, 0, 1), Features(1), Add(0, 1, 0)] if not cached else [Embed(0, 0, 1)]
    for layer in range(int(random.integers(1, 3))):
        first, gated, act = len(tensors), bool(random.integers(0, 2)), str(random.choice(ACTS))
        shapes = ((qkv, width), (width, heads * d), (inner * (1 + gated), width), (width, inner))
        group, shift = int(random.choice([16, 32, 64])), str(random.choice(["zeros", "offsets", "none"]))
        shifted = {"zeros": shift == "zeros", "offsets": shift == "offsets"}
        own = KINDS if group > 16 else [kind for kind in KINDS if kind != "int5"]
        tensors += [weights(random, str(random.choice(own)), *shape, group=group, **shifted) for shape in shapes]
        kind = str(random.choice(["layer", "rms", "rms_plus_one"]))
        attention = (
            CachedAttention(2, 3, layer, heads, kv, d, 0.2, window, cap)
            if cached
            else Attention(2, 3, heads, kv, d, 0.2, bool(random.integers(0, 2)), window, cap)
        )
        ops += [
            Norm(0, 1, 3, 3, 1e-5, kind), Linear(1, 2, first), HeadNorm(2, 0, heads, d, 4, 1e-6),
            Rotary(2, heads, kv, d, 2, PLACES), attention, Linear(3, 1, first + 1, 3),
            Norm(1, 0, 3, None, 1e-5, residual=0), Linear(0, 4, first + 2, None, act, gated=gated),
            Linear(4, 1, first + 3), Norm(1, 0, 3, None, 1e-5, kind, residual=0, total=5), Activate(5, 5, act),
        ]  # fmt: skip
    ops += [Pool(0, 6, str(random.choice(["first", "mean", "last", "max"]))), Normalize(6, 6)]
    ops += [Top(6, 7, 0, count=3)] if random.integers(0, 2) else [Linear(6, 7, 0, cap=cap)]
    out = 6 if isinstance(ops[-1], Top) else WORDS
    ops += [Foretell(0, 8, 0, cap=cap)]
    widths = (width, width, qkv, heads * d, inner, width)
    return Program(
        (*map(Buffer, widths), Buffer(width, "sequence"), Buffer(out, "sequence"), Buffer(2)),
        tuple(tensors),
        tuple(ops),
        7,
    )


def odd_rows(random: np.random.Generator, rows: int, width: int) -> Any:
    x = random.standard_normal((rows, width)).astype(F)
    for row in range(rows):
        way = random.integers(0, 8)
        if way == 0:
            x[row] = random.choice(ODD)
        elif way == 1:
            x[row, random.integers(0, width)] = random.choice(ODD)
        elif way == 2:
            x[row] *= F(10.0) ** random.integers(-30, 30)
    return x


def encoder_once(random: np.random.Generator) -> None:
    program = random_program(random, cached=False)
    lengths = [int(n) for n in random.integers(1, 90, random.integers(1, 5))]
    ids = random.integers(0, WORDS, sum(lengths), dtype=np.int32)
    x = odd_rows(random, sum(lengths), program.buffers[1].width)
    isa = str(random.choice(library().isas))
    answers = []
    for threads in (1, int(random.integers(2, 6))):
        with Engine(program, threads=threads, isa=isa) as engine, ThreadPoolExecutor(2) as callers:
            together = callers.map(lambda _, e=engine: e.run(ids, lengths=lengths, features=x), range(3))
            answers += list(together)
    for answer in answers[1:]:
        np.testing.assert_array_equal(answer, answers[0])
    start = 0
    with Engine(program, isa=isa) as engine:
        for n, row in zip(lengths, answers[0], strict=True):
            alone = engine.run(ids[start : start + n], lengths=[n], features=x[start : start + n])
            np.testing.assert_array_equal(alone[0], row)
            start += n


def decoder_once(random: np.random.Generator) -> None:
    program = random_program(random, cached=True)
    own = [(op.kv_heads, op.head_dim) for op in program.ops if isinstance(op, CachedAttention)]
    cache = Cache.empty(own, blocks=2 * _BLOCKS, block_size=8, kind=random.choice(["fp32", "bf16", "int8"]))
    tables = random.permutation(2 * _BLOCKS).astype(np.int32).reshape(2, _BLOCKS)
    with Engine(program, threads=int(random.integers(1, 4)), isa=str(random.choice(library().isas))) as engine:
        places, room = np.zeros(2, int), 8 * _BLOCKS
        while (places < room).all():
            rows = np.minimum(random.choice([1, 1, 2, 3, 7, 40, 150], 2), room - places)
            at = [np.arange(place, place + count) for place, count in zip(places, rows, strict=True)]
            slots = [table[own // 8] * 8 + own % 8 for table, own in zip(tables, at, strict=True)]
            engine.forward(
                random.integers(0, WORDS, rows.sum()), positions=np.concatenate(at), slots=np.concatenate(slots),
                tables=tables, lengths=rows, cache=cache,
            )  # fmt: skip
            places += rows


def broken_once(random: np.random.Generator) -> None:
    stored = serialize(random_program(random, cached=bool(random.integers(0, 2))))
    values = [-(2**63), -1, 0, 1, 2, 7, 64, 2**20, 2**31, 2**62, 2**63 - 1, int(random.integers(0, 300))]
    places = random.integers(0, len(stored.words), int(random.integers(1, 4)))
    try:
        with Engine(with_words(stored, {int(p): int(values[random.integers(0, 12)]) for p in places})) as engine:
            engine.run([1, 2, 3], lengths=[2, 1], features=np.ones((3, stored.words[8]), F))
    except InputError:
        return


def main(seed: int, count: int) -> None:
    for number in range(seed, seed + count):
        random = np.random.default_rng(number)
        try:
            encoder_once(random)
            decoder_once(random)
            for _ in range(20):
                broken_once(random)
        except BaseException:
            print(f"with seed {number}", file=sys.stderr)
            raise
    print(f"{count} rounds on {', '.join(library().isas)}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
