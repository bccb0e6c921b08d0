"""Attention that multiplies bf16, against numpy that rounds the same numbers at the same places.

Bounds: queries, keys, weights and values are rounded as the kernel rounds them, so what is left are numbers on the edge
between two bf16, of which the last digit of fp32 decides: a few among thousands of outputs, by 2^-8 of a value at most.
"""

from __future__ import annotations

import numpy as np
import pytest
from native_here import native_only
from native_programs import one_op
from native_reference import bf16, expected, from_bf16
from numpy.typing import NDArray

from hasten.native import library, missing
from hasten.native.engine import Engine
from hasten.native.program import Attention

pytestmark = native_only
F = np.float32
ISAS = list(library().isas) if missing() is None else ["portable"]
LENGTHS = [65, 113, 64, 511]  # keys of one block: the largest score of all is the largest so far


def narrow(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return from_bf16(bf16(values.astype(F))).astype(np.float64)


def rms(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(values**2)))


def rounded(x: NDArray[np.float32], *, heads: int, kv_heads: int, d: int, causal: bool) -> NDArray[np.float64]:
    out, begin = np.zeros((len(x), heads * d)), 0
    for length in LENGTHS:
        q, k, v = np.split(x[begin : begin + length].astype(np.float64), [heads * d, (heads + kv_heads) * d], axis=1)
        for head in range(heads):
            kv = head // (heads // kv_heads)
            query = narrow(q[:, head * d : (head + 1) * d].astype(F) * F(d**-0.5))
            scores = query @ narrow(k[:, kv * d : (kv + 1) * d]).T
            if causal:
                scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            mixed = narrow(weights) @ narrow(v[:, kv * d : (kv + 1) * d])
            out[begin : begin + length, head * d : (head + 1) * d] = mixed / weights.sum(axis=1, keepdims=True)
        begin += length
    return out


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "d", "causal"),
    [(3, 3, 32, False), (4, 2, 64, True), (2, 1, 20, True), (1, 1, 7, False), (2, 1, 40, True), (2, 1, 256, True)],
)
def test_what_it_multiplies_is_rounded_and_nothing_else(
    isa: str, heads: int, kv_heads: int, d: int, causal: bool
) -> None:
    op = Attention(0, 1, heads, kv_heads, d, d**-0.5, causal, bf16=True)
    width = (heads + 2 * kv_heads) * d
    program = one_op(op, width=width, out=heads * d)
    x = (2 * np.random.default_rng(3).standard_normal((sum(LENGTHS), width))).astype(F)
    with Engine(program, threads=2, isa=isa) as engine:
        found = engine.run(None, lengths=LENGTHS, features=x)
    if isa != "avx512_bf16":  # no such products: fp32
        np.testing.assert_allclose(found, expected(program, lengths=LENGTHS, features=x), atol=1e-4, rtol=0)
        return
    off = found - rounded(x, heads=heads, kv_heads=kv_heads, d=d, causal=causal)
    assert np.abs(off).max() < 2**-8 * np.abs(x).max()
    assert rms(off) < 1e-4
    assert rms(found - expected(program, lengths=LENGTHS, features=x)) > 2e-3


@pytest.mark.parametrize("isa", ISAS)
def test_a_text_does_not_know_its_neighbours(isa: str) -> None:
    program = one_op(Attention(0, 1, 2, 2, 16, 0.25, bf16=True), width=96, out=32)
    x = np.random.default_rng(5).standard_normal((700, 96)).astype(F)
    with Engine(program, threads=3, isa=isa) as engine:
        together = engine.run(None, lengths=[33, 600, 67], features=x)
        alone = engine.run(None, lengths=[600], features=x[33:633])
    np.testing.assert_array_equal(together[33:633], alone)
    np.testing.assert_allclose(together[:33], expected(program, lengths=[33], features=x[:33]), atol=2e-5, rtol=0)
