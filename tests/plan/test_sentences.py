"""Sentences: every number in them was measured, and a relaxed bound that they name really holds."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_trials import figures, trial

from hasten.plan.budget import parse_budget
from hasten.plan.choose import passes, trial_checks
from hasten.plan.sentences import amount, check_sentence, relaxations, verdict_sentence
from hasten.records import Check, Interval, Measured, Metric, Outcome

BASELINE = Measured({}, "base", "torch fp32 eager", figures(50.0, quality=79.1))
CHOSEN = Measured({}, "chosen", "onnxruntime int8 dynamic", figures(10.0, quality=78.9))
BUDGET = parse_budget("quality_drop<=1, p95_ms<=20")


def sentence(
    outcome: Outcome, *, tuned: Measured = BASELINE, chosen: Measured | None = CHOSEN, budget: str = ""
) -> str:
    gain, drop = Interval(5.1, 4.8, 5.4), Interval(0.2, -0.3, 0.7)
    row = replace(trial("chosen"), figures=CHOSEN.figures, speedup=gain, quality_drop_pt=drop)
    made = trial_checks(row, parse_budget(budget))
    return verdict_sentence(
        outcome, baseline=BASELINE, tuned=tuned, chosen=chosen, speedup=gain, quality_drop=drop, checks=made
    )


def test_met_says_how_much_faster_and_what_it_costs() -> None:
    found = sentence("met")
    assert found.startswith("MEETS THE BUDGET: 5.1x faster (4.8-5.4) than torch fp32 eager, ")
    assert found.endswith("accuracy 79.1 -> 78.9, drop 0.2 pt (-0.3..0.7)")


def test_not_met_names_the_closest_and_only_the_broken_bound() -> None:
    found = sentence("not_met", budget="p95_ms<=10, quality_drop<=1")
    assert found.startswith("MISSES THE BUDGET: the closest is onnxruntime int8 dynamic: ")
    assert "p95_ms 12 ms against <= 10 ms (20% over)" in found
    assert "quality_drop" not in found


def test_a_closest_miss_that_is_slower_is_said_to_be_slower() -> None:
    gain = Interval(0.5, 0.4, 0.8)
    found = verdict_sentence(
        "not_met", baseline=BASELINE, tuned=BASELINE, chosen=CHOSEN, speedup=gain, quality_drop=None, checks=()
    )
    assert "2.0x slower (1.2-2.5) than torch fp32 eager" in found
    assert "faster" not in found


def test_nothing_is_gained_by_relaxing_for_a_slower_one() -> None:
    slow = trial("slow", speedup=0.8, drop=1.3)
    assert relaxations([slow], BUDGET, current=slow) == ()


def test_not_met_without_any_candidate() -> None:
    assert sentence("not_met", chosen=None).startswith("MISSES THE BUDGET: no candidate")


def test_baseline_best_names_the_better_setup_if_there_is_one() -> None:
    assert "torch fp32 eager" in sentence("baseline_best", chosen=None)
    tuned = replace(BASELINE, recipe_id="tuned", label="torch fp32 compiled")
    found = sentence("baseline_best", tuned=tuned)
    assert found.startswith("NOTHING BEATS YOUR BASELINE")
    assert "torch fp32 compiled" in found


@pytest.mark.parametrize(
    ("bound", "measured", "expected"),
    [
        ("size<=40MB", 50e6, "bytes 50.0 MB against <= 40.0 MB (25% over)"),
        ("throughput>=2000/s", 1500.0, "throughput_per_s 1500/s against >= 2000/s (25% under)"),
        ("quality_drop<=0", 0.4, "quality_drop 0.4 pt against <= 0 pt"),
        ("energy<=5mJ", None, "energy_j could not be measured here (energy<=5mJ)"),
        ("p95<=20", 15.0, "p95_ms 15 ms against <= 20 ms"),
    ],
)
def test_a_check_in_words(bound: str, measured: float | None, expected: str) -> None:
    (constraint,) = parse_budget(bound).constraints
    holds = measured is not None and constraint.holds(measured)
    assert check_sentence(Check(constraint, measured, holds, None)) == expected


def test_relaxing_is_offered_for_what_misses_one_bound_and_is_faster() -> None:
    chosen = trial("chosen", speedup=2.0)
    rows = [
        chosen,
        trial("one bound", speedup=3.6, drop=1.3),
        trial("two bounds", speedup=9.0, drop=1.3, p50=40.0),
        trial("no gain", speedup=2.02, drop=1.3),
        trial("rejected", speedup=9.0, rejected_at="parity"),
    ]
    assert relaxations(rows, BUDGET, current=chosen) == (
        "relax quality_drop to 1.3 pt -> 1.8x faster than the choice (one bound)",
    )


def test_relaxing_compares_with_the_baseline_when_nothing_passes() -> None:
    miss = trial("near", speedup=3.0, p50=20.0)
    assert relaxations([miss], BUDGET, current=miss) == (
        "relax p95_ms to 24 ms -> 3.0x faster than the baseline (near)",
    )


def test_relaxations_are_few_and_the_largest_gain_comes_first() -> None:
    rows = [trial("chosen", speedup=1.0), *(trial(f"r{n}", speedup=2.0 + n, drop=1.3) for n in range(8))]
    found = relaxations(rows, BUDGET, current=rows[0])
    assert [re.findall(r"\((r\d)\)", text) for text in found] == [["r7"], ["r6"], ["r5"]]


@given(
    st.sampled_from(["quality_drop", "p95_ms", "bytes", "energy_j"]),
    st.floats(0.0011, 99.0),
    st.sampled_from([1.0, 1e3]),
)
def test_a_relaxed_bound_can_be_pasted_and_holds(metric: str, value: float, factor: float) -> None:
    measured = value * (1e6 if metric == "bytes" else 1.0 if metric == "quality_drop" else factor)
    (pasted,) = parse_budget(f"{metric}<={amount(metric, measured, up=True)}").constraints
    assert pasted.holds(measured * (1 - 1e-5))
    assert pasted.value <= measured * 1.02 + (1e5 if metric == "bytes" else 0)


@given(st.sampled_from(["quality", "throughput_per_s", "speedup"]), st.floats(0.01, 99.0))
def test_a_lowered_bound_can_be_pasted_and_holds(metric: str, measured: float) -> None:
    (pasted,) = parse_budget(f"{metric}>={amount(metric, measured, up=False)}").constraints
    assert pasted.holds(measured * (1 + 1e-5))
    assert pasted.value >= measured * 0.98


def test_a_trial_passes_the_budget_that_its_relaxation_names() -> None:
    row = trial("near", speedup=3.0, p50=19.2837465)
    (text,) = relaxations([row], BUDGET, current=None)
    bound = re.match(r"relax (\S+) to (.+) ->", text)
    assert bound is not None
    assert passes(row, parse_budget(f"quality_drop<=1, {bound[1]}<={bound[2]}"))


@pytest.mark.parametrize("metric", get_args(Metric))
def test_every_metric_has_a_unit_that_a_budget_reads_back(metric: str) -> None:
    op = ">=" if metric in ("quality", "throughput_per_s", "tokens_per_s", "speedup") else "<="
    value = 5e7 if "bytes" in metric else 5.0
    (read,) = parse_budget(f"{metric}{op}{amount(metric, value)}").constraints
    assert (read.metric, read.value) == (metric, value)
