"""Every kernel against plain numpy on every instruction set of this host: integers exactly, fp32 within bounds.

Bounds: an fp32 sum of K products errs by at most K 2^-24 of the sum of their sizes, and by about sqrt(K) 2^-24 of it
in practice; 1e-5 of outputs around 1 leaves room for K of a few thousand. Activations add 2e-7 (`math.h`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from native_here import native_only
from native_programs import linear, one_op, weights
from native_reference import expected

from hasten.errors import InputError
from hasten.native import library, missing
from hasten.native.engine import Engine
from hasten.native.program import (
    Activate,
    Add,
    Attention,
    Buffer,
    Embed,
    Features,
    Foretell,
    Linear,
    Norm,
    Normalize,
    Pool,
    Program,
    Rotary,
)
from hasten.native.tensors import Floats

pytestmark = native_only
F = np.float32
ISAS = ["portable"]
if missing() is None:
    ISAS = list(library().isas)
KINDS = ["fp32", "bf16", "int8", "int5", "int4"]
SHAPES = [(1, 1, 1), (1, 384, 384), (2, 17, 33), (3, 64, 16), (13, 100, 47), (25, 384, 96), (64, 129, 31), (5, 0, 7)]


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(7)


def answer(program: Program, isa: str, *, threads: int = 1, lengths: Any, **inputs: Any) -> Any:
    with Engine(program, threads=threads, isa=isa) as engine:
        assert engine.isa == isa
        return engine.run(inputs.pop("ids", None), lengths=lengths, **inputs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "columns", "outputs"), SHAPES)
def test_products(isa: str, kind: str, rows: int, columns: int, outputs: int, random: np.random.Generator) -> None:
    x = random.standard_normal((rows, columns)).astype(F)
    program = linear(weights(random, kind, outputs, columns), random.standard_normal(outputs))
    got = answer(program, isa, threads=2, lengths=[rows], features=x)
    want = expected(program, lengths=[rows], features=x)
    if kind == "int8":
        np.testing.assert_array_equal(got, want)
    elif kind == "bf16" and isa == "avx512_bf16":  # inputs of 8 significant bits: 2^-9 of each product
        np.testing.assert_allclose(got, want, atol=2e-2, rtol=0)
    else:
        np.testing.assert_allclose(got, want, atol=1e-5 * (1 + np.abs(want).max(initial=0)), rtol=0)


@pytest.mark.parametrize(
    ("kind", "shift"), [("int4", "none"), ("int4", "zeros"), ("int4", "offsets"), ("int5", "none"), ("int5", "offsets")]
)
@pytest.mark.parametrize("group", [16, 32, 64, 128])
def test_groups(isa: str, kind: str, group: int, shift: str, random: np.random.Generator) -> None:
    x = random.standard_normal((7, 200)).astype(F)
    tensor = weights(random, kind, 50, 200, group=group, zeros=shift == "zeros", offsets=shift == "offsets")
    program = linear(tensor)
    if kind == "int5" and group % 32:
        with pytest.raises(InputError, match="multiple of 32"):
            Engine(program, isa=isa)
        return
    got = answer(program, isa, lengths=[7], features=x)
    want = expected(program, lengths=[7], features=x)
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max(), rtol=0)


@pytest.mark.parametrize("extreme", ["nan", "inf", "denormal", "equal", "zero", "outlier", "huge", "range"])
def test_int8_extremes_are_exact(isa: str, extreme: str, random: np.random.Generator) -> None:
    x = random.standard_normal((4, 40)).astype(F)
    x[1] = {
        "nan": [np.nan], "inf": [-np.inf], "denormal": [1e-40], "equal": [3.0], "zero": [0.0], "outlier": x[1],
        "huge": [3e38], "range": [3e38, -3e38] * 20,
    }[extreme]  # fmt: skip
    if extreme == "outlier":
        x[1, 3] = 1e6
    program = linear(weights(random, "int8", 33, 40), random.standard_normal(33))
    got = answer(program, isa, lengths=[4], features=x)
    np.testing.assert_array_equal(got, expected(program, lengths=[4], features=x))
    assert np.isnan(got[1]).all() == (extreme in ("nan", "inf", "range"))
    assert np.isfinite(got[[0, 2, 3]]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_know_its_neighbours(isa: str, kind: str, random: np.random.Generator) -> None:
    x = random.standard_normal((31, 96)).astype(F)
    program = linear(weights(random, kind, 70, 96))
    together = answer(program, isa, lengths=[31], features=x)
    alone = np.concatenate([answer(program, isa, lengths=[1], features=row[None]) for row in x[::6]])
    np.testing.assert_array_equal(together[::6], alone)


@pytest.mark.parametrize("act", ["gelu_erf", "gelu_tanh", "relu", "silu", "tanh"])
def test_activations(isa: str, act: Any) -> None:
    x = np.concatenate([np.linspace(-12, 12, 4001), [0.0, -0.0, 1e-30, 80, -80, 1000, -1000]]).astype(F)[:, None]
    program = one_op(Activate(0, 1, act), width=1, out=1)
    got = answer(program, isa, lengths=[len(x)], features=x)
    want = expected(program, lengths=[len(x)], features=x)
    np.testing.assert_allclose(got, want, atol=4e-7, rtol=4e-7)


@pytest.mark.parametrize("act", ["gelu_erf", "gelu_tanh", "relu", "silu", "tanh"])
def test_activations_keep_nan(isa: str, act: Any) -> None:
    program = one_op(Activate(0, 1, act), width=3, out=3)
    got = answer(program, isa, lengths=[1], features=np.array([[1, np.nan, 2]], F))
    assert np.isnan(got[0]).tolist() == [False, True, False]


@pytest.mark.parametrize("kind", ["fp32", "int8"])
@pytest.mark.parametrize("gated", [False, True])
def test_linear_fuses_bias_activation_gate_and_residual(
    isa: str, kind: str, gated: bool, random: np.random.Generator
) -> None:
    tensors = (weights(random, kind, 44, 30), Floats(random.standard_normal(44).astype(F)))
    out = 22 if gated else 44
    ops = (
        Features(0),
        Linear(0, 1, 0),
        Linear(0, 2, 0, 1, activation="silu", gated=gated, residual=2),
    )
    first = Linear(0, 2, 0, gated=gated)
    program = Program((Buffer(30), Buffer(44), Buffer(out)), tensors, (ops[0], first, ops[2]), 2)
    x = random.standard_normal((9, 30)).astype(F)
    want = expected(program, lengths=[9], features=x)
    np.testing.assert_allclose(answer(program, isa, threads=2, lengths=[9], features=x), want, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["layer", "rms", "rms_plus_one"])
@pytest.mark.parametrize("width", [1, 16, 50, 384])
def test_norms(isa: str, kind: Any, width: int, random: np.random.Generator) -> None:
    tensors = (Floats(random.standard_normal(width).astype(F)), Floats(random.standard_normal(width).astype(F)))
    buffers = (Buffer(width), Buffer(width), Buffer(width))
    ops = (Features(0), Activate(0, 1, "tanh"), Norm(1, 1, 0, 1, 1e-5, kind, residual=0, total=2), Add(1, 2, 1))
    program = Program(buffers, tensors, ops, 1)
    x = (3 + random.standard_normal((11, width))).astype(F)
    want = expected(program, lengths=[11], features=x)
    np.testing.assert_allclose(answer(program, isa, lengths=[11], features=x), want, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("table", KINDS[:3])
def test_embeddings(isa: str, table: str, random: np.random.Generator) -> None:
    tensors = tuple(weights(random, table, count, 20) for count in (50, 12, 2))
    program = Program((Buffer(20),), tensors, (Embed(0, 0, 1, 2, first_position=2, scale=1.5),), 0)
    ids, types = random.integers(0, 50, 13, dtype=np.int32), random.integers(0, 2, 13, dtype=np.int32)
    got = answer(program, isa, ids=ids, lengths=[9, 4], types=types)
    np.testing.assert_allclose(got, expected(program, ids, lengths=[9, 4], types=types), atol=1e-6, rtol=1e-6)
    without = answer(program, isa, ids=ids, lengths=[9, 4])
    np.testing.assert_allclose(without, expected(program, ids, lengths=[9, 4]), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "causal", "window"),
    [(1, 1, 8, False, 0), (3, 3, 32, False, 0), (4, 2, 64, True, 0), (2, 1, 20, True, 7), (2, 2, 16, False, 5)],
)
def test_attention(isa: str, heads: int, kv_heads: int, head_dim: int, causal: bool, window: int) -> None:
    random, lengths = np.random.default_rng(3), [1, 13, 60, 2, 600]
    op = Attention(0, 1, heads, kv_heads, head_dim, head_dim**-0.5, causal, window)
    width = (heads + 2 * kv_heads) * head_dim
    program = one_op(op, width=width, out=heads * head_dim)
    x = (2 * random.standard_normal((sum(lengths), width))).astype(F)
    want = expected(program, lengths=lengths, features=x)
    for threads in (1, 3):
        got = answer(program, isa, threads=threads, lengths=lengths, features=x)
        np.testing.assert_allclose(got, want, atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", ["first", "mean", "last", "max"])
def test_pooling_and_normalizing(isa: str, kind: Any, random: np.random.Generator) -> None:
    ops = (Features(0), Pool(0, 1, kind), Normalize(1, 1))
    program = Program((Buffer(21), Buffer(21, "sequence")), (), ops, 1)
    x = random.standard_normal((10, 21)).astype(F)
    got = answer(program, isa, threads=2, lengths=[3, 1, 6], features=x)
    np.testing.assert_allclose(got, expected(program, lengths=[3, 1, 6], features=x), atol=1e-6, rtol=0)


@pytest.mark.parametrize("turned", [1, 3, 5])
def test_rotary(isa: str, turned: int, random: np.random.Generator) -> None:
    """All of a head or a part of it, and places far behind those that were made first."""
    tensors = (Floats(random.uniform(0, 3, turned).astype(F)),)
    program = Program((Buffer(45),), tensors, (Features(0), Rotary(0, 2, 1, 10, 0, 2000, 1.5)), 0)
    for lengths in ([8, 2], [1, 700], [3]):
        x = random.standard_normal((sum(lengths), 45)).astype(F)
        got = answer(program, isa, lengths=lengths, features=x)
        np.testing.assert_allclose(got, expected(program, lengths=lengths, features=x), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cap", [0.0, 50.0])
def test_foretelling(isa: str, kind: str, cap: float, random: np.random.Generator) -> None:
    """The softmax over outputs that are not kept, for rows that fill tiles and rows that do not."""
    tensors = (weights(random, kind, 130, 40), Floats(random.standard_normal(130).astype(F)))
    buffers = (Buffer(40), Buffer(2))
    program = Program(buffers, tensors, (Embed(0, 0, scale=9.0), Foretell(0, 1, 0, 1, cap)), 1)
    ids = random.integers(0, 130, 60, dtype=np.int32)
    for threads in (1, 3, 12):
        got = answer(program, isa, threads=threads, ids=ids, lengths=[1, 22, 37])
        want = expected(program, ids, lengths=[1, 22, 37])
        np.testing.assert_array_equal(got[:, 1], want[:, 1])
        np.testing.assert_allclose(got[:, 0], want[:, 0], atol=2e-2 if kind == "bf16" else 2e-4, rtol=0)


def test_foretelling_from_no_numbers_is_no_number(isa: str, random: np.random.Generator) -> None:
    tensors = (weights(random, "fp32", 33, 4), Floats(np.where(np.arange(33) == 20, np.nan, 0).astype(F)))
    program = Program((Buffer(4), Buffer(2)), tensors, (Embed(0, 0), Foretell(0, 1, 0, 1)), 1)
    assert np.isnan(answer(program, isa, ids=np.arange(5, dtype=np.int32), lengths=[5])[:, 0]).all()


@pytest.mark.parametrize("gated", [False, True])
def test_outputs_are_softly_bounded(isa: str, gated: bool, random: np.random.Generator) -> None:
    program = linear(weights(random, "fp32", 44, 30), cap=0.5, gated=gated)
    x = random.standard_normal((9, 30)).astype(F)
    want = expected(program, lengths=[9], features=x)
    np.testing.assert_allclose(answer(program, isa, lengths=[9], features=x), want, atol=1e-6, rtol=0)


@pytest.mark.parametrize("window", [0, 7])
def test_scores_are_softly_bounded(isa: str, window: int, random: np.random.Generator) -> None:
    program = one_op(Attention(0, 1, 2, 1, 20, 0.5, causal=True, window=window, cap=2.0), width=80, out=40)
    lengths = [1, 13, 60]
    x = (2 * random.standard_normal((sum(lengths), 80))).astype(F)
    want = expected(program, lengths=lengths, features=x)
    np.testing.assert_allclose(answer(program, isa, lengths=lengths, features=x), want, atol=2e-5, rtol=0)


def test_one_result_on_every_path_of_integers(random: np.random.Generator) -> None:
    program = linear(weights(random, "int8", 130, 260), random.standard_normal(130))
    x = random.standard_normal((19, 260)).astype(F) * np.exp(random.standard_normal((19, 1)) * 4).astype(F)
    answers = [answer(program, isa, threads=2, lengths=[19], features=x) for isa in ISAS]
    for other in answers[1:]:
        np.testing.assert_array_equal(other, answers[0])
