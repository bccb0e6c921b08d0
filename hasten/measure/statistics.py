"""Percentiles and bootstrap intervals of plain numbers.

Takes sequences of measured values, gives records. Knows nothing of how they were measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hasten.records import InputError, Interval, Latency

RESAMPLES = 2000
LEVEL = 0.95


def latency(ms: Sequence[float]) -> Latency:
    """Percentiles of request times in milliseconds (linear interpolation between order statistics)."""
    values = np.asarray(ms, dtype=np.float64)
    require(values, "request times")
    p50, p90, p95, p99 = np.percentile(values, [50, 90, 95, 99]).tolist()
    return Latency(p50=p50, p90=p90, p95=p95, p99=p99, n=len(values))


def mean_interval(values: Sequence[float] | np.ndarray, *, seed: int) -> Interval:
    """The mean with its 95 % percentile-bootstrap interval, in the values' own unit."""
    array = np.asarray(values, dtype=np.float64)
    require(array, "values")
    return bootstrap(array, lambda x, axis: np.mean(x, axis=axis), seed=seed)


def bootstrap(values: np.ndarray, statistic: Callable[..., Any], *, seed: int) -> Interval:
    """``statistic(values, axis=0)`` with the percentile bootstrap over ``values``.

    One value, or values all alike, give a point: there is no spread to resample.
    """
    from scipy import stats

    estimate = float(statistic(values, axis=0))
    if len(values) < 2 or np.ptp(values) == 0:
        return Interval(estimate, estimate, estimate)
    found = stats.bootstrap(
        (values,),
        statistic,
        n_resamples=RESAMPLES,
        batch=max(1, 4_000_000 // len(values)),  # bounds the resampled matrix to 32 MB
        vectorized=True,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = (float(bound) for bound in found.confidence_interval)
    return Interval(estimate, min(low, estimate), max(high, estimate))


def require(values: np.ndarray, what: str) -> None:
    """At least one value and all of them finite, else InputError."""
    if values.size == 0 or not np.isfinite(values).all():
        raise InputError(
            f"{values.size} {what}, {int((~np.isfinite(values)).sum())} of them not finite",
            expected=f"at least one, all finite {what}",
            remedy="look at the rejected trials for the reason why nothing was measured",
        )
