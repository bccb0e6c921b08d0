"""Numbers with units as a reader sees them, the same in the terminal and on the page.

Takes figures in the records' units, gives short strings; ``None`` becomes a dash.
Knows no layout and no markup.
"""

from __future__ import annotations

import math

from hasten.records import Check, Energy, Interval, Metric, Quality

MISSING = "–"


def significant(value: float, *, digits: int = 3) -> str:
    """``value`` with ``digits`` significant digits, without an exponent in the range of interest."""
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(decimals, 6)}f}"


def ms(value: float | None) -> str:
    return MISSING if value is None else f"{significant(value)} ms"


def size(value: float | None) -> str:
    """Bytes in decimal units, as budgets are written."""
    if value is None:
        return MISSING
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= scale:
            return f"{significant(value / scale)} {unit}"
    return f"{value:.0f} B"


def rate(value: float | None) -> str:
    return MISSING if value is None else f"{significant(value)} /s"


def points(value: float | None) -> str:
    return MISSING if value is None else f"{_unsigned_zero(value)} pt"


def quality(value: Quality | None) -> str:
    return MISSING if value is None else f"{value.value:.2f}"


def joules(value: float | None) -> str:
    return MISSING if value is None else f"{significant(value)} J"


def energy(value: Energy | None) -> str:
    """With the word where no meter was read."""
    if value is None:
        return MISSING
    return joules(value.joules_per_request) + (" (estimated)" if value.method == "estimated" else "")


def times(value: float | None) -> str:
    """A ratio: ``5.12x``."""
    return MISSING if value is None else f"{significant(value)}x"


def times_interval(interval: Interval | None) -> str:
    if interval is None:
        return MISSING
    return f"{times(interval.estimate)} ({times_range(interval)})"


def times_range(interval: Interval) -> str:
    """The interval without its estimate: ``4.81 to 5.39``."""
    return f"{significant(interval.low)} to {significant(interval.high)}"


def points_range(interval: Interval) -> str:
    return f"{_unsigned_zero(interval.low)} to {_unsigned_zero(interval.high)}"


def points_interval(interval: Interval | None) -> str:
    if interval is None:
        return MISSING
    return f"{points(interval.estimate)} ({points_range(interval)})"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return MISSING
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def in_unit(metric: Metric, value: float | None) -> str:
    """A bounded figure in its metric's unit."""
    if metric == "quality_drop":
        return points(value)
    if metric == "quality":
        return MISSING if value is None else f"{value:.2f}"
    if metric in ("bytes", "peak_rss_bytes"):
        return size(value)
    if metric in ("throughput_per_s", "tokens_per_s"):
        return rate(value)
    if metric == "energy_j":
        return joules(value)
    return times(value) if metric == "speedup" else ms(value)


def check_words(check: Check) -> str:
    """``"measured 0.20 pt: met, over its whole interval"``."""
    if check.measured is None:
        return "not measured: not met"
    measured = in_unit(check.constraint.metric, check.measured)
    if not check.holds:
        missed_by = -check.constraint.slack(check.measured)
        return f"measured {measured}: missed by {in_unit(check.constraint.metric, missed_by)}"
    if check.interval_holds is None:
        return f"measured {measured}: met"
    over = "over its whole interval" if check.interval_holds else "but not over its whole interval"
    return f"measured {measured}: met, {over}"


def _unsigned_zero(value: float) -> str:
    """Two decimals, and no ``-0.00``."""
    return f"{round(value, 2) + 0.0:.2f}"
