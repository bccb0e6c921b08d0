"""Programs that do not hold together, and batches that do not fit, are refused with a sentence."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from native_here import native_only
from native_programs import linear, one_op, weights, with_words

from hasten.errors import InputError
from hasten.native.engine import Engine
from hasten.native.program import Attention, Buffer, Embed, Features, Linear, Norm, Pool, Program, Rotary
from hasten.native.serialized import Serialized, read_in_whole, serialize
from hasten.native.tensors import Floats, Int8

pytestmark = native_only
F = np.float32
TABLE = Floats(np.zeros((5, 8), F))
EIGHT = Floats(np.zeros(8, F))
BAD = {
    "output of another width": one_op(Linear(0, 1, 0), width=8, out=6, tensors=(TABLE,)),
    "input of another width": one_op(Linear(0, 1, 0), width=9, out=5, tensors=(TABLE,)),
    "no such tensor": one_op(Linear(0, 1, 3), width=8, out=5, tensors=(TABLE,)),
    "no such buffer": one_op(Linear(0, 7, 0), width=8, out=5, tensors=(TABLE,)),
    "negative buffer": one_op(Linear(-2, 1, 0), width=8, out=5, tensors=(TABLE,)),
    "bias of another length": one_op(Linear(0, 1, 0, 1), width=8, out=5, tensors=(TABLE, EIGHT)),
    "odd gates": one_op(Linear(0, 1, 0, gated=True), width=8, out=2, tensors=(TABLE,)),
    "own output": Program((Buffer(8),), (Floats(np.zeros((8, 8), F)),), (Features(0), Linear(0, 0, 0)), 0),
    "norm's weight": one_op(Norm(0, 1, 0, None, 1e-5), width=7, out=7, tensors=(EIGHT,)),
    "eps": one_op(Norm(0, 1, 0, None, float("nan")), width=8, out=8, tensors=(EIGHT,)),
    "heads": one_op(Attention(0, 1, 3, 2, 4, 1.0), width=28, out=12),
    "width of heads": one_op(Attention(0, 1, 2, 2, 4, 1.0), width=23, out=8),
    "no heads": one_op(Attention(0, 1, 0, 0, 4, 1.0), width=0, out=0),
    "window": one_op(Attention(0, 1, 1, 1, 4, 1.0, window=-3), width=12, out=4),
    "pooled tokens": one_op(Pool(0, 1, "mean"), width=8, out=8),
    "table": Program((Buffer(9),), (TABLE,), (Embed(0, 0),), 0),
    "integer table as a bias": one_op(
        Linear(0, 1, 0, 1), width=8, out=5, tensors=(TABLE, Int8(np.zeros((1, 5), np.int8), np.zeros(1, F)))
    ),
    "rotary": one_op(Rotary(0, 1, 1, 6, 0, 0), width=11, out=1, tensors=(Floats(np.zeros((4, 3), F)),)),
    "output": Program((Buffer(8),), (), (Features(0),), 4),
}


# Words of the tensor of a `linear` program, behind six words of its own and two of each of three buffers.
_GROUP, _SHIFT = 15, 16


@pytest.mark.parametrize("name", BAD)
def test_bad_programs(name: str) -> None:
    with pytest.raises(InputError, match="expected"):
        Engine(BAD[name])


def test_arrays_of_other_sizes() -> None:
    stored = serialize(linear(weights(np.random.default_rng(0), "int8", 10, 12)))
    for place in range(len(stored.arrays)):
        shorter = tuple(a.reshape(-1)[:-1] if n == place else a for n, a in enumerate(stored.arrays))
        with pytest.raises(InputError, match="bytes"):
            Engine(dataclasses.replace(stored, arrays=shorter))
    with pytest.raises(InputError, match="arrays"):
        Engine(dataclasses.replace(stored, arrays=stored.arrays[:1]))
    with pytest.raises(InputError, match="behind its end"):
        Engine(dataclasses.replace(stored, arrays=(*stored.arrays, stored.arrays[0])))


def test_words_that_end_or_go_on() -> None:
    stored = serialize(linear(weights(np.random.default_rng(0), "int4", 10, 12)))
    for count in range(len(stored.words)):
        with pytest.raises(InputError):
            Engine(dataclasses.replace(stored, words=stored.words[:count].copy()))
    with pytest.raises(InputError, match="behind its end"):
        Engine(dataclasses.replace(stored, words=np.append(stored.words, 0)))
    with pytest.raises(InputError, match="begin like a program"):
        Engine(with_words(stored, {0: 7}))
    with pytest.raises(InputError, match="ends after word 0"):
        Engine(Serialized.of({}))


@pytest.mark.parametrize("kind", ["int8", "int4", "int5"])
def test_any_word_may_be_wrong(kind: str) -> None:
    """Either it is refused, or it is another program that runs."""
    random = np.random.default_rng(1)
    program = linear(
        weights(random, kind, 10, 12, offsets=kind == "int5"), random.standard_normal(10), activation="relu"
    )
    stored, x = serialize(program), random.standard_normal((3, 12)).astype(F)
    for place in range(len(stored.words)):
        for value in (-(2**63), -1, 0, 1, 2, 3, 5, 11, 2**20, 2**31, 2**62, 2**63 - 1):
            try:
                with Engine(with_words(stored, {place: value})) as engine:
                    engine.run(None, lengths=[3], features=x)
            except InputError:
                continue


@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("word", [_GROUP, _SHIFT])
def test_groups_of_weights_that_have_none(kind: str, word: int) -> None:
    stored = serialize(linear(weights(np.random.default_rng(0), kind, 10, 32)))
    with pytest.raises(InputError, match="groups of weights that have none"):
        Engine(with_words(stored, {word: 1}))


def test_zero_points_beside_five_bits() -> None:
    stored = serialize(linear(weights(np.random.default_rng(0), "int5", 10, 32)))
    with pytest.raises(InputError, match="zero points beside 5 bits"):
        Engine(with_words(stored, {_SHIFT: 1}))


def test_batches_that_do_not_fit() -> None:
    tensors = (Floats(np.zeros((5, 8), F)), Floats(np.zeros((4, 8), F)), Floats(np.zeros((2, 8), F)))
    program = Program((Buffer(8),), tensors, (Embed(0, 0, 1, 2, first_position=1),), 0)
    with Engine(program) as engine:
        assert engine.run([0, 4, 2], lengths=[3], types=[0, 1, 1]).shape == (3, 8)
        for ids, lengths, types in (
            ([5], [1], None), ([-1], [1], None), ([0, 0], [1], None), ([0], [0, 1], None), ([], [], None),
            ([0] * 4, [4], None), ([0], [1], [2]), ([0], [1], [0, 0]), ([0], [-1, 2], None), ([2**40], [1], None),
            ([0.5], [1], None), (None, [1], None),
        ):  # fmt: skip
            with pytest.raises(InputError):
                engine.run(np.array(ids) if ids is not None else None, lengths=np.array(lengths, int), types=types)  # type: ignore[arg-type]


def test_features_that_do_not_fit() -> None:
    with Engine(linear(TABLE)) as engine:
        for shape in ((2, 8), (3, 7), (3,), (3, 8, 1)):
            with pytest.raises(InputError):
                engine.run(None, lengths=[3], features=np.zeros(shape, F))
        with pytest.raises(InputError, match="features"):
            engine.run(None, lengths=[3])


@pytest.mark.parametrize(("kind", "shift"), [("int4", "zeros"), ("int4", "offsets"), ("int5", "offsets")])
def test_a_program_comes_back_from_named_arrays(kind: str, shift: str) -> None:
    program = linear(weights(np.random.default_rng(2), kind, 6, 40, **{shift: True}))
    stored = serialize(program)
    again = Serialized.of(stored.named())
    x = np.random.default_rng(3).standard_normal((2, 40)).astype(F)
    with Engine(program) as one, Engine(again) as other:
        np.testing.assert_array_equal(
            one.run(None, lengths=[2], features=x), other.run(None, lengths=[1, 1], features=x)
        )


@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8", "int5", "int4"])
@pytest.mark.parametrize("shift", ["", "zeros", "offsets"])
def test_weights_that_are_read_in_whole(kind: str, shift: str) -> None:
    """All arrays of a product's weights, and none of a table."""
    given = {shift: True} if shift else {}
    tensors = (Floats(np.zeros((5, 64), F)), weights(np.random.default_rng(0), kind, 10, 64, **given))
    stored = serialize(Program((Buffer(64), Buffer(10)), tensors, (Embed(0, 0), Linear(0, 1, 1)), 1))
    assert read_in_whole(stored) == sum(array.nbytes for array in stored.arrays[1:])


def test_settings_that_do_not_exist() -> None:
    program = linear(TABLE)
    for settings in ({"threads": 0}, {"threads": 100000}, {"isa": "mmx"}):
        with pytest.raises(InputError):
            Engine(program, **settings)  # type: ignore[arg-type]


def test_a_closed_engine() -> None:
    engine = Engine(linear(TABLE))
    engine.close()
    engine.close()
    with pytest.raises(InputError, match="closed"):
        engine.run(None, lengths=[1], features=np.zeros((1, 8), F))
