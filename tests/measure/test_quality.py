"""Quality drops: sign, pairing, exact tests, and which flips are shown first."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.measure.quality import flips, mcnemar_p, paired_drop, scored_drop
from hasten.records import InputError

RIGHT = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


def test_a_worse_candidate_has_a_positive_drop_in_points() -> None:
    baseline = np.full(400, 100.0)
    candidate = baseline.copy()
    candidate[:20] = 0.0
    found = paired_drop(baseline, candidate, seed=0)
    assert found.estimate == 5.0
    assert 2.0 < found.low < 5.0 < found.high < 8.0


def test_pairing_cancels_what_is_hard_for_both() -> None:
    draw = np.random.default_rng(0)
    baseline = draw.choice([0.0, 100.0], size=300)
    found = paired_drop(baseline, baseline, seed=0)
    assert found.estimate == 0.0
    # None of 300 rows differs: at 95 % up to 1.22 % of all rows still may (Clopper-Pearson).
    assert (found.low, found.high) == pytest.approx((-1.222, 1.222), abs=1e-3)


@settings(max_examples=25, deadline=None)
@given(RIGHT)
def test_drop_is_antisymmetric(pairs: list[tuple[bool, bool]]) -> None:
    left = [100.0 * a for a, _ in pairs]
    right = [100.0 * b for _, b in pairs]
    assert paired_drop(left, right, seed=0).estimate == -paired_drop(right, left, seed=0).estimate


def test_scored_drop_agrees_with_the_paired_one_on_a_mean() -> None:
    draw = np.random.default_rng(1)
    baseline = draw.choice([0.0, 100.0], size=300, p=[0.1, 0.9])
    candidate = draw.choice([0.0, 100.0], size=300, p=[0.15, 0.85])
    scored = scored_drop(lambda i: (baseline[i].mean(), candidate[i].mean()), 300, seed=0, resamples=1000)
    paired = paired_drop(baseline, candidate, seed=0)
    assert scored.estimate == pytest.approx(paired.estimate)
    assert scored.low == pytest.approx(paired.low, abs=1.0)
    assert scored.high == pytest.approx(paired.high, abs=1.0)


def test_scored_drop_leaves_out_undefined_resamples() -> None:
    def score(index: np.ndarray) -> tuple[float, float]:
        return (math.nan, 0.0) if 0 not in index else (90.0, 89.0)

    found = scored_drop(score, 5, seed=0, resamples=100)
    assert (found.low, found.estimate, found.high) == (1.0, 1.0, 1.0)


def test_scored_drop_with_no_rows_or_an_undefined_metric_is_an_error() -> None:
    with pytest.raises(InputError):
        scored_drop(lambda _: (0.0, 0.0), 0, seed=0)
    with pytest.raises(InputError):
        scored_drop(lambda _: (math.nan, 0.0), 3, seed=0)


@given(RIGHT)
def test_mcnemar_matches_the_binomial_sum(pairs: list[tuple[bool, bool]]) -> None:
    lost = sum(a and not b for a, b in pairs)
    won = sum(b and not a for a, b in pairs)
    n, few = lost + won, min(lost, won)
    by_hand = min(1.0, 2 * sum(math.comb(n, k) for k in range(few + 1)) / 2**n)
    found = mcnemar_p([a for a, _ in pairs], [b for _, b in pairs])
    assert found == pytest.approx(by_hand)
    assert found == pytest.approx(mcnemar_p([b for _, b in pairs], [a for a, _ in pairs]))


def test_unlike_rows_are_an_error() -> None:
    with pytest.raises(InputError, match="same rows"):
        paired_drop([1.0, 2.0], [1.0], seed=0)
    with pytest.raises(InputError, match="same rows"):
        mcnemar_p([True, False], [True])


def test_flips_show_broken_rows_first_and_keep_row_numbers() -> None:
    texts = ["a", "b", "c", "d", "e"]
    labels = ["x", "x", "z", "x", "x"]
    baseline = ["y", "x", "y", "x", "x"]
    chosen = ["x", "y", "x", "x", "z"]
    found = flips(texts, labels, baseline, chosen, [10, 20, 30, 40, 50], 10)
    assert [flip.row for flip in found] == [20, 50, 30, 10]
    assert (found[0].text, found[0].label, found[0].baseline, found[0].chosen) == ("b", "x", "x", "y")
    assert [flip.row for flip in flips(texts, labels, baseline, chosen, [10, 20, 30, 40, 50], 2)] == [20, 50]


def test_flips_without_labels_keep_data_order() -> None:
    found = flips(["a", "b"], None, ["x", "y"], ["y", "x"], [1, 2], 5)
    assert [(flip.row, flip.label) for flip in found] == [(1, None), (2, None)]
