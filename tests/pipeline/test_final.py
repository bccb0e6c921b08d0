"""What the final figures amount to."""

from __future__ import annotations

import pytest

from hasten.pipeline.final import Finalist, Tuned, outcome_of
from hasten.records import Check, Constraint, Figures, Interval, Measured, Outcome, Trial

SAME, TWICE = Interval(1.0, 0.98, 1.02), Interval(2.0, 1.9, 2.1)
BOUND = Constraint("bytes", "<=", 30e6, "bytes<=30MB")


def finalist(*, holds: bool, speedup: Interval) -> Finalist:
    trial = Trial(recipe={}, recipe_id="a", label="a", stage="final", status="ok", elapsed_s=1.0)
    check = Check(BOUND, 23e6, holds, None)
    return Finalist(trial, Figures(), speedup, Interval(0, 0, 0), None, (), (check,), (1.0,), (1.0,))


@pytest.mark.parametrize(
    ("holds", "speedup", "baseline_passes", "wanted"),
    [
        (True, TWICE, False, "met"),
        (True, TWICE, True, "met"),
        (True, SAME, True, "baseline_best"),
        (True, SAME, False, "met"),  # no faster, but small enough, and the original is not
        (False, TWICE, False, "not_met"),
        (False, TWICE, True, "not_met"),
    ],
)
def test_outcomes(holds: bool, speedup: Interval, baseline_passes: bool, wanted: Outcome) -> None:
    tuned = Tuned(Measured({}, "b", "b", Figures()), speedup, baseline_passes)
    assert outcome_of(finalist(holds=holds, speedup=speedup), tuned) == wanted


def test_without_a_finalist_nothing_is_met() -> None:
    assert outcome_of(None, Tuned(Measured({}, "b", "b", Figures()), None, passes=False)) == "not_met"
