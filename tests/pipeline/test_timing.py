"""Rounds that a neighbour disturbed are measured again."""

from __future__ import annotations

import pytest

from hasten.measure.duel import Round
from hasten.pipeline import timing
from hasten.pipeline.bench import disagreement
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


def test_rounds_that_disagree_are_remarked() -> None:
    calm, wild = [one(10.0), one(12.0)], [one(10.0), one(70.0)]
    assert disagreement(calm) == ""
    assert "10.0x and 70.0x" in disagreement(wild)
