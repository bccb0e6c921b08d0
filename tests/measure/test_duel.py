"""Duels: fair turns, and no false claims when nothing differs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from hasten.measure.duel import NOISE_FLOOR, SETTLE_MS, Round, claims_slowdown, claims_speedup, duel, speedup
from hasten.measure.worker import Worker
from hasten.records import InputError, Interval, Rejected

TURNS, PER_TURN, TIMEOUT_S = 12, 20, 30.0


class Recorder:
    """Stands for a worker: notes what it was asked to time."""

    def __init__(self, name: str, journal: list[tuple[str, list[int]]], ms: float) -> None:
        self.name, self.journal, self.ms = name, journal, ms

    def time(self, batches: Sequence[Mapping[str, Any]], *, timeout_s: float | None) -> list[float]:
        assert timeout_s == TIMEOUT_S
        self.journal.append((self.name, [batch["n"] for batch in batches]))
        return [1000.0, *[self.ms] * (len(batches) - 1)]  # a costly first call must not be counted


def simulated(draw: np.random.Generator, *, ratio: float = 1.0, offset: float = 0.015, jitter: float = 0.05) -> Round:
    """One round with per-process offsets, common drift, autocorrelated noise per turn, and outliers."""
    drift = np.cumsum(draw.normal(0, 0.01, TURNS))
    mix = draw.lognormal(0, 0.3, (TURNS, PER_TURN))  # request lengths, the same on both sides

    def side(base_ms: float) -> tuple[tuple[float, ...], ...]:
        own = draw.choice([-1, 1]) * draw.uniform(0.01, 0.02) if offset else 0.0
        per_turn, noise = 0.0, []
        for _ in range(TURNS):
            per_turn = 0.6 * per_turn + draw.normal(0, 0.01)
            noise.append(per_turn)
        log = np.log(base_ms) + own + (drift + noise)[:, None] + draw.normal(0, jitter, (TURNS, PER_TURN))
        spikes = np.where(draw.random((TURNS, PER_TURN)) < 0.02, 3.0, 1.0)
        return tuple(map(tuple, (np.exp(log) * mix * spikes).tolist()))

    return Round(a_ms=side(10.0 * ratio), b_ms=side(10.0))


def test_turns_alternate_and_share_their_requests() -> None:
    journal: list[tuple[str, list[int]]] = []
    seen: list[tuple[int, int]] = []
    requests = [{"n": i} for i in range(50)]
    a, b = Recorder("a", journal, 4.0), Recorder("b", journal, 2.0)
    found = duel(
        a,  # type: ignore[arg-type]
        b,  # type: ignore[arg-type]
        requests,
        turns=4,
        per_turn=5,
        warmup=3,
        seed=1,
        timeout_s=TIMEOUT_S,
        progress=lambda *done: seen.append(done),
    )
    assert journal[:2] == [("a", [0, 1, 2]), ("b", [0, 1, 2])]
    assert "".join(name for name, _ in journal[2:]) == "abbaabba"
    timed = [asked[-5:] for _, asked in journal[2:]]
    assert all(timed[i] == timed[i + 1] for i in range(0, len(timed), 2))
    for (name, asked), own in zip(journal[2:], timed, strict=True):
        untimed = math.ceil(SETTLE_MS / {"a": 4.0, "b": 2.0}[name])
        assert asked[:-5] == [own[i % 5] for i in range(untimed)]
    assert found.a_ms == ((4.0,) * 5,) * 4
    assert found.b_ms == ((2.0,) * 5,) * 4
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert speedup([found]).estimate == pytest.approx(2.0)


def test_requests_are_drawn_by_the_seed_and_may_be_few() -> None:
    def drawn(seed: int) -> list[tuple[str, list[int]]]:
        journal: list[tuple[str, list[int]]] = []
        a, b = Recorder("a", journal, 1.0), Recorder("b", journal, 1.0)
        requests = [{"n": i} for i in range(3)]
        duel(a, b, requests, turns=3, per_turn=8, warmup=0, seed=seed, timeout_s=TIMEOUT_S)  # type: ignore[arg-type]
        return journal

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_nothing_to_measure_is_an_error() -> None:
    with pytest.raises(InputError):
        duel(None, None, [], turns=1, per_turn=1, warmup=0, seed=0)  # type: ignore[arg-type]
    with pytest.raises(InputError):
        speedup([])


@pytest.mark.parametrize(("rounds", "runs"), [(1, 80), (2, 40), (3, 40)])
def test_a_null_duel_claims_in_at_most_one_of_twenty(rounds: int, runs: int) -> None:
    draw = np.random.default_rng(rounds)
    claims = 0
    for run in range(runs):
        found = speedup([simulated(draw) for _ in range(rounds)], seed=run)
        claims += claims_speedup(found) or claims_slowdown(found)
    assert claims / runs <= 0.05


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_real_difference_is_claimed(rounds: int) -> None:
    draw = np.random.default_rng(5)
    found = [speedup([simulated(draw, ratio=1.25) for _ in range(rounds)], seed=i) for i in range(10)]
    assert sum(claims_speedup(one) for one in found) >= 9
    assert np.mean([one.estimate for one in found]) == pytest.approx(1.25, rel=0.03)
    assert not any(claims_slowdown(one) for one in found)


def test_the_interval_covers_the_true_ratio() -> None:
    draw = np.random.default_rng(11)
    found = [speedup([simulated(draw, ratio=1.5) for _ in range(3)], seed=i) for i in range(60)]
    assert sum(one.low <= 1.5 <= one.high for one in found) >= 50
    assert np.mean([one.high - one.low for one in found]) < 0.15


def test_swapping_sides_inverts_the_ratio() -> None:
    one = simulated(np.random.default_rng(3), ratio=1.4)
    forth, back = speedup([one]), speedup([Round(a_ms=one.b_ms, b_ms=one.a_ms)])
    assert forth.estimate == pytest.approx(1 / back.estimate)
    assert forth.low == pytest.approx(1 / back.high, rel=0.01)


def test_claims_need_the_whole_interval_beyond_the_floor() -> None:
    assert claims_speedup(Interval(1.2, 1 + NOISE_FLOOR + 0.001, 1.4))
    assert not claims_speedup(Interval(1.2, 1 + NOISE_FLOOR - 0.001, 1.4))
    assert claims_slowdown(Interval(0.8, 0.7, 0.96))
    assert not claims_slowdown(Interval(0.8, 0.7, 0.98))


@pytest.fixture
def pair() -> Iterator[tuple[Worker, Worker]]:
    with Worker.start(cores=(), threads=1) as a, Worker.start(cores=(), threads=1) as b:
        yield a, b


def test_a_hung_side_ends_the_duel(pair: tuple[Worker, Worker]) -> None:
    for side, work_s in zip(pair, (0.001, 5.0), strict=True):
        side.open("sessions_for_tests:open_fake", work_s=work_s)
    requests = [{"input_ids": np.ones((1, 3), np.int64)}]
    with pytest.raises(Rejected, match=r"timeout: time took longer than 0\.5 s"):
        duel(*pair, requests, turns=2, per_turn=2, warmup=0, seed=0, timeout_s=0.5)


def test_two_real_workers_of_known_speeds(pair: tuple[Worker, Worker]) -> None:
    a, b = pair
    a.open("sessions_for_tests:open_fake", work_s=0.004)
    b.open("sessions_for_tests:open_fake", work_s=0.002)
    requests = [{"input_ids": np.ones((1, n), np.int64)} for n in range(1, 9)]
    found = speedup([duel(a, b, requests, turns=6, per_turn=5, warmup=2, seed=0)])
    assert 1.4 < found.estimate < 3.0  # a busy neighbour may hit one side more than the other
    assert claims_speedup(found)
