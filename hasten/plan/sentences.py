"""The verdict and its counterfactuals in plain words.

Takes records, gives sentences. Every number in them was measured in this run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from hasten.plan.choose import best, latest, miss, searched, trial_checks
from hasten.records import Budget, Check, Interval, Measured, Outcome, Trial

_WORTH = 1.05
_NEIGHBOURS = "neighbour_overlap"
_MOST = 3
_UNITS = {
    "quality_drop": "pt", "quality": "pt", "p50_ms": "ms", "p90_ms": "ms", "p95_ms": "ms", "p99_ms": "ms",
    "throughput_per_s": "/s", "energy_j": "J", "speedup": "x", "ttft_ms": "ms", "ttft_p95_ms": "ms", "tpot_ms": "ms",
    "tpot_p95_ms": "ms", "tokens_per_s": "/s",
}  # fmt: skip


def verdict_sentence(
    outcome: Outcome,
    *,
    baseline: Measured,
    tuned: Measured,
    chosen: Measured | None,
    speedup: Interval | None,
    quality_drop: Interval | None,
    checks: Sequence[Check],
    untried: bool = False,
) -> str:
    """One sentence that a person can repeat to a colleague. ``untried``: the time ended before any candidate."""
    if chosen is None and untried:
        rest = "your baseline meets the budget as it is" if outcome == "baseline_best" else "your baseline misses it"
        return f"NO CANDIDATE WAS MEASURED in the time given ({rest}): give it more --time"
    if outcome == "baseline_best":
        if tuned.recipe_id != baseline.recipe_id:
            return f"NOTHING BEATS YOUR BASELINE once it is set up well: {tuned.label} is as fast as anything tried"
        return f"NOTHING BEATS YOUR BASELINE: {baseline.label} is as fast as anything that was tried and passed"
    if chosen is None:
        return "MISSES THE BUDGET: no candidate could be built and verified; the ledger says why for each"
    facts = [_faster(speedup, than=baseline.label), _quality(baseline, chosen, quality_drop)]
    if outcome == "met":
        return "MEETS THE BUDGET: " + ", ".join(f for f in facts if f)
    broken = "; ".join(check_sentence(c) for c in checks if not c.holds)
    return f"MISSES THE BUDGET: the closest is {chosen.label}: {broken} ({', '.join(f for f in facts if f)})"


def check_sentence(check: Check) -> str:
    """``p95_ms 23.1 ms against <= 20 ms (15% over)``."""
    bound = check.constraint
    if check.measured is None:
        return f"{bound.metric} could not be measured here ({bound.text})"
    found = f"{bound.metric} {amount(bound.metric, check.measured)}"
    side = "over" if bound.op == "<=" else "under"
    # A share of a bound at or below zero says nothing.
    share = f" ({miss(check):.0%} {side})" if bound.value > 0 and not check.holds else ""
    return f"{found} against {bound.op} {amount(bound.metric, bound.value)}{share}"


def relaxations(trials: Sequence[Trial], budget: Budget, *, current: Trial | None) -> tuple[str, ...]:
    """What loosening one bound would buy, from candidates that miss that bound alone."""
    now = current.speedup.estimate if current and current.speedup and best(trials, budget) else None
    found: list[tuple[float, str]] = []
    for trial in latest(searched(trials)):
        broken = [c for c in trial_checks(trial, budget) if not c.holds and c.measured is not None]
        if len(broken) != 1 or not trial.speedup:
            continue
        gain = trial.speedup.estimate / (now or 1.0)
        if gain < _WORTH:
            continue
        bound, value = broken[0].constraint, broken[0].measured or 0.0
        what = f"{gain:.1f}x faster than the choice" if now else f"{gain:.1f}x faster than the baseline"
        to = amount(bound.metric, value, up=bound.op == "<=")
        found.append((gain, f"relax {bound.metric} to {to} -> {what} ({trial.label})"))
    return tuple(text for _, text in sorted(found, reverse=True)[:_MOST])


def amount(metric: str, value: float, *, up: bool | None = None) -> str:
    """A value with its unit: bytes in MB, the rest as named; three digits, more above 1000.

    No comma between thousands: a budget reads one as the end of the bound.

    ``up`` rounds up (``True``) or down (``False``), so that what was measured keeps within the amount.
    """
    size = metric in ("bytes", "peak_rss_bytes")
    shown = value / 1e6 if size else value
    digits = 1 if size else max(0, 2 - math.floor(math.log10(abs(shown)))) if shown else 0
    if up is None:
        shown = round(shown, digits)
    else:
        step = 10.0**digits
        # Binary fractions: 0.29 * 100 is 28.999..., which is not to be rounded down to 28.
        shown = (math.ceil(shown * step - 1e-6) if up else math.floor(shown * step + 1e-6)) / step
    text = f"{shown:.{digits}f}"
    text = text.rstrip("0").rstrip(".") if "." in text and not size else text
    unit = "MB" if size else _UNITS[metric]
    return f"{text}{unit}" if unit in ("/s", "x") else f"{text} {unit}"


def _faster(speedup: Interval | None, *, than: str) -> str:
    if speedup is None:
        return ""
    if speedup.estimate < 1:
        return f"{1 / speedup.estimate:.1f}x slower ({1 / speedup.high:.1f}-{1 / speedup.low:.1f}) than {than}"
    return f"{speedup.estimate:.1f}x faster ({speedup.low:.1f}-{speedup.high:.1f}) than {than}"


def _quality(baseline: Measured, chosen: Measured, drop: Interval | None) -> str:
    a, b = baseline.figures.quality, chosen.figures.quality
    if a is None or b is None or drop is None:
        return ""
    worse, low, high = (f"{round(x, 1) + 0.0:.1f}" for x in (drop.estimate, drop.low, drop.high))  # no -0.0
    said = f"{b.metric} {a.value:.1f} -> {b.value:.1f}, drop {worse} pt ({low}..{high})"
    if _NEIGHBOURS in a.others and _NEIGHBOURS in b.others:  # what a search over the vectors would notice first
        said += f", neighbour overlap {a.others[_NEIGHBOURS]:.1f} -> {b.others[_NEIGHBOURS]:.1f}"
    return said
