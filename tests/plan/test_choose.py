"""Choosing: a bound is judged by what was measured, a recipe by its most thorough trial."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_trials import figures, trial

from hasten.plan.budget import parse_budget
from hasten.plan.choose import (
    TIE,
    best,
    checks,
    closest_miss,
    gain,
    latest,
    may_pass,
    pareto,
    passes,
    searched,
    trial_checks,
    untried,
    worst_miss,
)
from hasten.records import Energy, Figures, Interval, Stage, Trial

BUDGET = parse_budget("quality_drop<=1, p95_ms<=20")
STAGES: list[Stage] = ["preflight", "screen", "contest", "final"]


@st.composite
def trial_lists(draw: st.DrawFn) -> list[Trial]:
    made = st.builds(
        trial,
        st.sampled_from("abcdef"),
        stage=st.sampled_from(STAGES),
        speedup=st.one_of(st.none(), st.floats(0.2, 8)),
        drop=st.one_of(st.none(), st.integers(-2, 5).map(float)),
        rejected_at=st.sampled_from([None, None, None, "parity", "time", "pruned"]),
        p50=st.integers(1, 30).map(float),
        size=st.integers(1, 5).map(lambda n: n * 10_000_000),
        quality=st.integers(80, 95).map(float),
        rss=st.integers(1, 3).map(lambda n: n * 100_000_000),
    )
    return draw(st.lists(made, max_size=12))


def test_every_metric_is_read_from_its_figure() -> None:
    text = (
        "quality_drop<=1, quality>=90, p50_ms<=10, p90_ms<=10, p95_ms<=10, p99_ms<=10, throughput_per_s>=100, "
        "bytes<=50MB, peak_rss_bytes<=1GB, energy_j<=1, speedup>=3"
    )
    measured = replace(figures(10.0), throughput_per_s=99.0, energy=Energy(0.5, "estimated"))
    drop, gain = Interval(0.2, -0.3, 0.7), Interval(3.1, 2.9, 3.3)
    made = checks(parse_budget(text), figures=measured, speedup=gain, quality_drop=drop)
    assert [c.measured for c in made] == pytest.approx([0.2, 90, 10, 11, 12, 15, 99, 40e6, 500e6, 0.5, 3.1])
    assert [c.holds for c in made] == [True, True, True, False, False, False, False, True, True, True, True]
    assert [c.interval_holds for c in made] == [True, *[None] * 9, False]


def test_what_was_not_measured_does_not_hold_but_rules_no_trial_out() -> None:
    budget = parse_budget("energy_j<=1, p95_ms<=20")
    (first, _) = checks(budget, figures=Figures(), speedup=None, quality_drop=None)
    assert (first.measured, first.holds, first.interval_holds) == (None, False, None)
    assert passes(trial(), budget)


def test_a_rejected_trial_never_passes() -> None:
    assert not passes(trial(rejected_at="parity"), parse_budget(""))


@pytest.mark.parametrize(("drop", "expected"), [(0.9, True), (1.4, True), (1.6, False)])
def test_a_screen_gives_the_drop_the_margin_of_its_interval(drop: float, expected: bool) -> None:
    assert may_pass(trial(drop=drop, width=0.5), BUDGET) is expected


def test_a_screen_gives_latency_no_margin() -> None:
    assert not may_pass(trial(p50=17.0), BUDGET)  # p95 is 20.4 ms


def test_the_latest_stage_counts_and_time_takes_nothing_back() -> None:
    rows = [
        trial("a", stage="screen", speedup=3.0),
        trial("a", stage="contest", speedup=2.0),
        trial("b", stage="screen", speedup=2.5),
        trial("b", stage="contest", rejected_at="parity"),
        trial("c", stage="screen", speedup=1.5),
        trial("c", stage="contest", rejected_at="time"),
        trial("d", stage="preflight", speedup=9.0),
    ]
    assert [(t.recipe_id, t.stage) for t in latest(rows)] == [("a", "contest"), ("c", "screen")]


def test_best_is_the_fastest_that_passes() -> None:
    rows = [trial("fast", speedup=5.0, drop=2.0), trial("good", speedup=3.0), trial("slow", speedup=2.0)]
    found = best(rows, BUDGET)
    assert found is not None
    assert found.recipe_id == "good"


def test_a_tie_goes_to_the_smaller_then_to_the_better() -> None:
    rows = [
        trial("fastest", speedup=3.05, size=50_000_000),
        trial("small", speedup=3.0, size=20_000_000, quality=89.0),
        trial("small and better", speedup=3.0, size=20_000_000, quality=90.0),
        trial("smallest", speedup=2.0, size=10_000_000),
    ]
    found = best(rows, BUDGET)
    assert found is not None
    assert found.recipe_id == "small and better"


def test_nothing_passes() -> None:
    assert best([trial(drop=3.0)], BUDGET) is None
    assert best([], BUDGET) is None
    assert closest_miss([], BUDGET) is None


def test_the_closest_miss_has_the_smallest_worst_share() -> None:
    rows = [
        trial("drop doubled", drop=2.0),
        trial("p95 a fifth over", p50=20.0),
        trial("p95 far over", p50=60.0),
    ]
    found = closest_miss(rows, BUDGET)
    assert found is not None
    assert found.recipe_id == "p95 a fifth over"
    assert worst_miss(trial_checks(found, BUDGET)) == pytest.approx(0.2)


def test_a_bound_of_zero_is_missed_by_its_amount() -> None:
    budget = parse_budget("quality_drop<=0, p95_ms<=20")
    near, far = trial("near", drop=0.1), trial("far", drop=0.0, p50=40.0)
    assert worst_miss(trial_checks(near, budget)) == pytest.approx(0.1)
    assert closest_miss([far, near], budget) == near


@given(trial_lists())
def test_best_passes_and_nothing_that_counts_is_faster_beyond_a_tie(rows: list[Trial]) -> None:
    found = best(rows, BUDGET)
    rivals = [t for t in latest(searched(rows)) if passes(t, BUDGET) and t.speedup]
    assert (found is None) == (not rivals)
    if found is not None:
        assert found in rivals
        assert gain(found) >= max(gain(t) for t in rivals) * (1 - TIE)


def test_who_fails_the_contest_makes_room_and_the_original_is_no_candidate() -> None:
    """Three that looked fast fail the long look: the slower one that passed its screen is the answer."""
    fast = [trial(f"int8 {n}", speedup=5.0, drop=0.5) for n in range(3)]
    fell = [trial(f"int8 {n}", speedup=5.0, drop=1.3, stage="contest") for n in range(3)]
    tuned = {"passes": [], "runtime": {"kind": "torch", "precision": "fp32"}}
    plain = [replace(trial("tuned", speedup=1.1, drop=0.0, stage=s), recipe=tuned) for s in ("screen", "contest")]
    rows = [*fast, trial("fp32", speedup=2.5, drop=0.0), *fell, *plain]
    found = best(rows, BUDGET)
    assert found is not None
    assert found.label == "fp32"
    assert best(plain, BUDGET) is None


def test_the_final_test_is_no_ground_to_choose_on() -> None:
    rows = [trial("a", speedup=3.0, drop=0.0), trial("b", speedup=2.0, drop=0.0)]
    rows += [trial("b", speedup=9.0, drop=0.0, stage="final")]
    found = best(rows, BUDGET)
    assert found is not None
    assert found.recipe_id == "a"


@given(trial_lists())
def test_the_closest_miss_is_no_farther_than_any_other(rows: list[Trial]) -> None:
    found = closest_miss(rows, BUDGET)
    if found is not None:
        others = [worst_miss(trial_checks(t, BUDGET)) for t in latest(searched(rows)) if t.speedup]
        assert worst_miss(trial_checks(found, BUDGET)) <= min(others) + 1e-5


def axes(row: Trial) -> tuple[float, float, int, int]:
    latency, drop = row.figures.latency_ms, row.quality_drop_pt
    size, rss = row.figures.bytes, row.figures.peak_rss_bytes
    assert latency is not None
    assert size is not None
    assert rss is not None
    return (latency.p50, drop.estimate if drop else float("inf"), size, rss)


def beats(a: Trial, b: Trial) -> bool:
    return axes(a) != axes(b) and all(x <= y for x, y in zip(axes(a), axes(b), strict=True))


@given(trial_lists())
def test_the_front_is_beaten_by_none_and_beats_all_the_rest(rows: list[Trial]) -> None:
    front, pool = pareto(rows), latest(rows)
    assert bool(front) == bool(pool)
    assert all(t in pool for t in front)
    assert [axes(t)[0] for t in front] == sorted(axes(t)[0] for t in front)
    assert not any(beats(a, b) for a in pool for b in front)
    assert all(any(beats(a, b) for a in front) for b in pool if b not in front)


@given(trial_lists(), st.randoms())
def test_the_front_of_the_front_is_the_front_in_any_order(rows: list[Trial], shuffle: object) -> None:
    front = list(pareto(rows))
    shuffle.shuffle(front)  # type: ignore[attr-defined]
    assert {t.recipe_id for t in pareto(front)} == {t.recipe_id for t in front}


def test_time_that_ended_before_any_candidate_is_told_from_failure() -> None:
    late, broken = (
        trial("a", stage="preflight", rejected_at="time"),
        trial("a", stage="preflight", rejected_at="parity"),
    )
    assert untried([])
    assert untried([late])
    assert not untried([broken])
    assert not untried([late, trial("b")])
