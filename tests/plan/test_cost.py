"""Predictions: learnt from pairs of depths measured here, and honest about their error."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_trials import trial

from hasten.plan.cost import predict, prediction_error
from hasten.records import Figures, Trial


def pair(name: str, short_ms: float, full_ms: float) -> list[Trial]:
    return [
        trial(name, stage="preflight", p50=short_ms, size=20_000_000),
        trial(name, stage="screen", p50=full_ms, size=50_000_000),
    ]


def test_the_baselines_growth_carries_over() -> None:
    new = trial("new", stage="preflight", p50=2.0, size=4_000_000)
    found = predict(new, [*pair("baseline", 4.0, 10.0), new], weights_bytes=10**8, depth_ratio=3.0)
    assert found.latency_ms == pytest.approx(5.0)
    assert found.bytes == 10_000_000
    assert found.peak_build_bytes > 10**8


def test_before_any_pair_the_depth_ratio_stands_in() -> None:
    new = trial("new", stage="preflight", p50=2.0, size=4_000_000)
    found = predict(new, [new], weights_bytes=0, depth_ratio=3.0)
    assert found.latency_ms == pytest.approx(6.0)
    assert found.bytes == 12_000_000


def test_rejected_rows_teach_nothing() -> None:
    new = trial("new", stage="preflight", p50=2.0)
    odd = [trial("odd", stage="preflight", p50=1.0), trial("odd", stage="screen", rejected_at="parity")]
    found = predict(new, [*pair("baseline", 4.0, 10.0), *odd, new], weights_bytes=0, depth_ratio=3.0)
    assert found.latency_ms == pytest.approx(5.0)


@given(
    st.lists(st.tuples(st.floats(0.1, 50), st.floats(1, 6)), min_size=1, max_size=6),
    st.floats(0.1, 50),
)
def test_a_prediction_stays_within_the_growths_that_were_seen(seen: list[tuple[float, float]], short_ms: float) -> None:
    trials = [t for n, (ms, growth) in enumerate(seen) for t in pair(str(n), ms, ms * growth)]
    new = trial("new", stage="preflight", p50=short_ms)
    found = predict(new, [*trials, new], weights_bytes=0, depth_ratio=3.0)
    growths = [growth for _, growth in seen]
    assert short_ms * min(growths) * 0.999 <= found.latency_ms <= short_ms * max(growths) * 1.001


def test_the_error_is_the_median_share() -> None:
    trials = []
    for name, predicted, measured in (("a", 11.0, 10.0), ("b", 8.0, 10.0), ("c", 10.0, 10.0)):
        trials += [trial(name, stage="preflight", predicted_ms=predicted), trial(name, stage="screen", p50=measured)]
    assert prediction_error(trials) == pytest.approx(0.1)


def test_no_error_before_something_was_measured_in_full() -> None:
    alone = trial("a", stage="preflight", predicted_ms=5.0)
    assert prediction_error([]) is None
    assert prediction_error([alone]) is None
    assert prediction_error([alone, trial("a", stage="screen", rejected_at="memory")]) is None
    assert prediction_error([alone, replace(trial("a"), figures=Figures())]) is None
