"""What a candidate costs in quality, on the same rows as the baseline.

Takes per-row contributions, right-or-wrong marks or a scorer; gives intervals in points, an exact p-value
and the rows whose prediction changed. A drop is positive when the candidate is worse. Knows no task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hasten.measure.statistics import LEVEL, mean_interval, require
from hasten.records import Flip, InputError, Interval

_POINTS = 100.0  # a row counts for this at most


def paired_drop(
    baseline_rows: Sequence[float] | np.ndarray, candidate_rows: Sequence[float] | np.ndarray, *, seed: int
) -> Interval:
    """Drop of a metric that is a mean over rows, in points: mean(baseline - candidate), rows resampled.

    Rows hold each row's contribution in points (accuracy: 0 or 100). Paired, because both answered the
    same rows: what is hard for both cancels out.
    """
    baseline, candidate = np.asarray(baseline_rows, np.float64), np.asarray(candidate_rows, np.float64)
    _same_length(baseline, candidate)
    found = mean_interval(baseline - candidate, seed=seed)
    # Resampling rows that all agree shows no spread at all, yet a row in n may differ elsewhere: the exact
    # (Clopper-Pearson) bound for none of n, either way.
    unseen = _POINTS * (1.0 - ((1 - LEVEL) / 2) ** (1.0 / len(baseline))) if not np.any(baseline - candidate) else 0.0
    return Interval(found.estimate, found.low - unseen, found.high + unseen)


def scored_drop(
    score: Callable[[np.ndarray], tuple[float, float]], n: int, *, seed: int, resamples: int = 500
) -> Interval:
    """Drop of a metric that is no mean over rows (F1, rank correlation), in points.

    ``score(index)`` gives (baseline, candidate) on the rows ``index``, int64 positions in 0..n-1 that may
    repeat. Resamples on which a metric is undefined (not finite) are left out.
    """
    if n < 1:
        raise InputError("no rows", expected="at least one row", remedy="give more test rows")
    draw = np.random.default_rng(seed)
    estimate = _difference(score(np.arange(n)))
    require(np.asarray([estimate]), "quality drops")
    drops = np.array([_difference(score(draw.integers(0, n, n))) for _ in range(resamples)])
    drops = drops[np.isfinite(drops)]
    if drops.size == 0:
        return Interval(estimate, estimate, estimate)
    low, high = np.quantile(drops, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return Interval(estimate, min(low, estimate), max(high, estimate))


def mcnemar_p(baseline_right: Sequence[bool] | np.ndarray, candidate_right: Sequence[bool] | np.ndarray) -> float:
    """Exact two-sided McNemar test: could the rows that changed sides do so by chance? 1.0 for none."""
    from scipy import stats

    baseline, candidate = np.asarray(baseline_right, bool), np.asarray(candidate_right, bool)
    _same_length(baseline, candidate)
    lost, won = int((baseline & ~candidate).sum()), int((~baseline & candidate).sum())
    return 1.0 if lost + won == 0 else float(stats.binomtest(lost, lost + won, 0.5).pvalue)


def flips(
    texts: Sequence[str],
    labels: Sequence[object] | None,
    baseline: Sequence[str],
    chosen: Sequence[str],
    rows: Sequence[int],
    limit: int,
) -> tuple[Flip, ...]:
    """The first ``limit`` rows whose prediction changed, those that became wrong first.

    ``texts``, ``labels``, ``baseline`` and ``chosen`` are aligned; ``rows`` are their numbers in the data.
    """
    found = [
        Flip(row=row, text=text, label=None if label is None else str(label), baseline=before, chosen=after)
        for text, label, before, after, row in zip(
            texts, labels or [None] * len(texts), baseline, chosen, rows, strict=True
        )
        if before != after
    ]
    found.sort(key=_severity)  # stable: data order within a kind
    return tuple(found[:limit])


def _severity(flip: Flip) -> int:
    """0: right became wrong, 1: wrong became another wrong or there is no label, 2: wrong became right."""
    if flip.label is None:
        return 1
    return 0 if flip.baseline == flip.label else 2 if flip.chosen == flip.label else 1


def _difference(pair: tuple[float, float]) -> float:
    return float(pair[0]) - float(pair[1])


def _same_length(baseline: np.ndarray, candidate: np.ndarray) -> None:
    if baseline.shape != candidate.shape:
        raise InputError(
            f"{baseline.shape} baseline rows and {candidate.shape} candidate rows",
            expected="the same rows on both sides",
            remedy="evaluate both on the same split",
        )
