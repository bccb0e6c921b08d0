"""Percentiles and intervals: bounds, order, invariances, coverage."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.measure.statistics import latency, mean_interval
from hasten.records import InputError

TIMES = st.lists(st.floats(0.001, 1e5), min_size=1, max_size=60)
VALUES = st.lists(st.floats(-100, 100), min_size=1, max_size=40)


@given(TIMES)
def test_latency_is_ordered_and_within_the_data(ms: list[float]) -> None:
    found = latency(ms)
    tolerance = 1e-9 * max(ms)
    ordered = [min(ms), found.p50, found.p90, found.p95, found.p99, max(ms)]
    assert all(low <= high + tolerance for low, high in itertools.pairwise(ordered))
    assert found.n == len(ms)


@given(TIMES, st.randoms())
def test_latency_does_not_depend_on_order(ms: list[float], random: object) -> None:
    shuffled = list(ms)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert latency(shuffled) == latency(ms)


def test_latency_of_known_numbers() -> None:
    found = latency([float(i) for i in range(101)])
    assert (found.p50, found.p90, found.p95, found.p99, found.n) == (50.0, 90.0, 95.0, 99.0, 101)


@pytest.mark.parametrize("bad", [[], [1.0, float("nan")], [float("inf")]])
def test_nothing_or_not_finite_is_an_error(bad: list[float]) -> None:
    with pytest.raises(InputError):
        latency(bad)
    with pytest.raises(InputError):
        mean_interval(bad, seed=0)


@settings(max_examples=25, deadline=None)
@given(VALUES, st.floats(-50, 50))
def test_mean_interval_holds_its_estimate_and_moves_with_the_data(values: list[float], shift: float) -> None:
    found = mean_interval(values, seed=3)
    assert min(values) - 1e-9 <= found.low <= found.estimate <= found.high <= max(values) + 1e-9
    assert found.estimate == pytest.approx(np.mean(values), abs=1e-9)
    moved = mean_interval([value + shift for value in values], seed=3)
    assert moved.low == pytest.approx(found.low + shift, abs=1e-6)
    assert moved.high == pytest.approx(found.high + shift, abs=1e-6)


def test_mean_interval_is_reproducible_and_a_constant_is_a_point() -> None:
    values = np.random.default_rng(0).normal(size=50)
    assert mean_interval(values, seed=1) == mean_interval(values, seed=1)
    constant = mean_interval([2.5] * 10, seed=0)
    assert (constant.low, constant.estimate, constant.high) == (2.5, 2.5, 2.5)


def test_mean_interval_covers_the_truth() -> None:
    draw = np.random.default_rng(7)
    held = sum(
        found.low <= 1.0 <= found.high
        for found in (mean_interval(draw.exponential(size=100), seed=i) for i in range(200))
    )
    assert 0.88 <= held / 200 <= 0.99
