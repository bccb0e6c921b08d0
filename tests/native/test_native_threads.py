"""Threads of one engine, and several callers of one engine."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from native_here import native_only
from native_programs import weights

from hasten.native.engine import Engine
from hasten.native.program import Attention, Buffer, Features, Linear, Norm, Pool, Program
from hasten.native.tensors import Floats

pytestmark = native_only
F = np.float32


@pytest.fixture(scope="module")
def layer() -> Program:
    random = np.random.default_rng(5)
    tensors = (
        weights(random, "int8", 96, 32), weights(random, "int8", 32, 32), Floats(np.ones(32, F)),
        weights(random, "int4", 64, 32), weights(random, "int8", 32, 64),
    )  # fmt: skip
    buffers = (Buffer(32), Buffer(96), Buffer(32), Buffer(32), Buffer(64), Buffer(32, "sequence"))
    ops = (
        Features(0), Linear(0, 1, 0), Attention(1, 2, 4, 4, 8, 0.3),
        Linear(2, 3, 1), Norm(3, 0, 2, None, 1e-5, residual=0),
        Linear(0, 4, 3, activation="gelu_erf"), Linear(4, 3, 4),
        Norm(3, 0, 2, None, 1e-5, residual=0), Pool(0, 5, "mean"),
    )  # fmt: skip
    return Program(buffers, tensors, ops, 5)


def batch(seed: int) -> tuple[np.ndarray, list[int]]:
    random = np.random.default_rng(seed)
    lengths = [int(n) for n in random.integers(1, 40, 1 + seed % 5)]
    return random.standard_normal((sum(lengths), 32)).astype(F), lengths


def test_any_number_of_threads_gives_the_same(layer: Program) -> None:
    engines = [Engine(layer, threads=n) for n in (1, 2, 3, 7)]
    for seed in range(20):
        x, lengths = batch(seed)
        first, *others = [engine.run(None, lengths=lengths, features=x) for engine in engines]
        for other in others:
            np.testing.assert_array_equal(other, first)


def test_several_callers_wait_for_each_other(layer: Program) -> None:
    with Engine(layer, threads=2) as engine:
        alone = {seed: engine.run(None, lengths=batch(seed)[1], features=batch(seed)[0]) for seed in range(24)}

        def again(seed: int) -> bool:
            x, lengths = batch(seed)
            return all((engine.run(None, lengths=lengths, features=x) == alone[seed]).all() for _ in range(20))

        with ThreadPoolExecutor(6) as pool:
            assert all(pool.map(again, range(24)))


def test_pinned_threads(layer: Program) -> None:
    cores = sorted(os.sched_getaffinity(0))
    x, lengths = batch(3)
    with Engine(layer, threads=len(cores), cores=cores) as pinned, Engine(layer) as free:
        before = os.sched_getaffinity(0)
        np.testing.assert_array_equal(
            pinned.run(None, lengths=lengths, features=x), free.run(None, lengths=lengths, features=x)
        )
        assert os.sched_getaffinity(0) == before


def test_idle_threads_cost_nothing(layer: Program) -> None:
    x, lengths = batch(1)
    with Engine(layer, threads=4) as engine:
        engine.run(None, lengths=lengths, features=x)
        time.sleep(0.05)
        before = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - before < 0.05
        engine.run(None, lengths=lengths, features=x)  # and they wake again
