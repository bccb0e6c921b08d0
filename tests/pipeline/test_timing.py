"""Rounds that a neighbour disturbed are measured again."""

from __future__ import annotations

import pytest

from hasten.measure.duel import Round
from hasten.pipeline import timing
from hasten.records import Latency

USUAL = Latency(p50=10.0, p90=11.0, p95=12.0, p99=13.0, n=15)


def one(ms: float) -> Round:
    return Round(a_ms=((ms, ms),), b_ms=((1.0, 1.0),))


@pytest.mark.parametrize(("times", "asked", "kept"), [((11, 12), 1, 11), ((500, 12), 2, 12), ((90, 80, 70, 10), 3, 70)])
def test_the_calmest_of_three(
    times: tuple[float, ...], asked: int, kept: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "_PAUSE_S", 0.0)
    left = list(times)
    found = timing.calm(lambda: one(left.pop(0)), usual=USUAL)
    assert len(times) - len(left) == asked
    assert found == one(kept)
