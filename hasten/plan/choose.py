"""Who passed, who is fastest, how near the others came, and what relaxing a bound would buy.

Takes trials and a budget, gives records and sentences. A recipe counts once, with its
most thorough trial.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hasten.records import Budget, Check, Constraint, Figures, Interval, Stage, Trial

TIE = 0.03
_RANK: Mapping[Stage, int] = {"preflight": 0, "screen": 1, "contest": 2, "final": 3}


def latest(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Each recipe's most thorough full-model trial, the later of two like ones, if that one held."""
    found: dict[str, Trial] = {}
    for trial in trials:
        if trial.stage != "preflight" and trial.rejected_at not in ("pruned", "time"):
            known = found.get(trial.recipe_id)
            if known is None or _RANK[trial.stage] >= _RANK[known.stage]:
                found[trial.recipe_id] = trial
    return tuple(t for t in found.values() if t.status == "ok")


def measured_value(
    constraint: Constraint, figures: Figures, speedup: Interval | None, drop: Interval | None
) -> float | None:
    """The figure a bound is about, in the bound's unit; ``None`` when it was not measured."""
    metric = constraint.metric
    if metric == "speedup":
        return speedup.estimate if speedup else None
    if metric == "quality_drop":
        return drop.estimate if drop else None
    if metric == "quality":
        return figures.quality.value if figures.quality else None
    if metric == "energy_j":
        return figures.energy.joules_per_request if figures.energy else None
    if metric in ("throughput_per_s", "bytes", "peak_rss_bytes", "tokens_per_s"):
        value: float | None = getattr(figures, metric)
        return value
    of_tokens = {"ttft": figures.ttft_ms, "tpot": figures.tpot_ms}
    first, *percentile = metric.removesuffix("_ms").split("_")
    if first in of_tokens:
        found = of_tokens[first]
        return None if found is None else float(getattr(found, (percentile or ["p50"])[0]))
    return float(getattr(figures.latency_ms, first)) if figures.latency_ms else None


def checks(
    budget: Budget, *, figures: Figures, speedup: Interval | None, quality_drop: Interval | None
) -> tuple[Check, ...]:
    """Each bound against the estimate, and against the whole interval where there is one."""
    intervals = {"speedup": speedup, "quality_drop": quality_drop}
    made = []
    for constraint in budget.constraints:
        value = measured_value(constraint, figures, speedup, quality_drop)
        interval = intervals.get(constraint.metric)
        worst = None if interval is None else interval.high if constraint.op == "<=" else interval.low
        made.append(
            Check(
                constraint=constraint,
                measured=value,
                holds=value is not None and constraint.holds(value),
                interval_holds=None if worst is None else constraint.holds(worst),
            )
        )
    return tuple(made)


def trial_checks(trial: Trial, budget: Budget) -> tuple[Check, ...]:
    return checks(budget, figures=trial.figures, speedup=trial.speedup, quality_drop=trial.quality_drop_pt)


def may_pass(trial: Trial, budget: Budget) -> bool:
    """No measured bound is clearly broken: an interval that reaches the bound gets a longer look."""
    for check in trial_checks(trial, budget):
        if check.measured is None or check.holds:
            continue
        drop = trial.quality_drop_pt
        if check.constraint.metric == "quality_drop" and drop and drop.low <= check.constraint.value:
            continue
        return False
    return True


def passes(trial: Trial, budget: Budget) -> bool:
    """Every bound that a trial of this stage measures holds by its estimate."""
    return trial.status == "ok" and all(c.holds or c.measured is None for c in trial_checks(trial, budget))


def best(trials: Sequence[Trial], budget: Budget) -> Trial | None:
    """The fastest candidate that passes on selection; within a tie of 3 % the smaller, then the better one.

    A set-up of the original itself is no candidate. What the final test said is no ground to choose on: its rows
    would be seen twice.
    """
    pool = [t for t in latest(searched(trials)) if not is_tuned_baseline(t)]
    passing = [t for t in pool if passes(t, budget) and t.speedup]
    if not passing:
        return None
    fastest = max(gain(t) for t in passing)
    tied = [t for t in passing if gain(t) >= fastest * (1 - TIE)]
    return min(tied, key=lambda t: (t.figures.bytes or 0, -(t.figures.quality.value if t.figures.quality else 0)))


def searched(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """The trials less those of the final test."""
    return tuple(t for t in trials if t.stage != "final")


def untried(trials: Sequence[Trial]) -> bool:
    """Did the time end before any candidate could be measured in full, though some might have held?"""
    rivals = [t for t in trials if not is_tuned_baseline(t)]
    return not any(t.stage != "preflight" and t.status == "ok" for t in rivals) and (
        not rivals or any(t.rejected_at == "time" or t.status == "ok" for t in rivals)
    )


def is_tuned_baseline(trial: Trial) -> bool:
    """Does the trial change neither numbers nor runtime: PyTorch in fp32, only set up better?"""
    runtime = trial.recipe["runtime"]
    fp32 = runtime.get("precision") == "fp32" and not runtime.get("kv_cache")
    return not trial.recipe["passes"] and runtime["kind"] == "torch" and fp32


def closest_miss(trials: Sequence[Trial], budget: Budget) -> Trial | None:
    """The candidate whose worst bound is missed by the smallest share; faster first among equals."""
    found = [t for t in latest(searched(trials)) if t.speedup and not is_tuned_baseline(t)]
    return min(found, key=lambda t: (round(worst_miss(trial_checks(t, budget)), 6), -gain(t)), default=None)


def worst_miss(made: Sequence[Check]) -> float:
    """Largest share by which a bound is missed; 0 when all hold."""
    return max((miss(c) for c in made), default=0.0)


def miss(check: Check) -> float:
    """Share of the bound by which it is missed: 23 ms against 20 ms is 0.15."""
    if check.holds:
        return 0.0
    if check.measured is None:
        return float("inf")
    # A bound of zero has no share; then one unit of the metric (a point of quality) counts as the whole.
    return abs(check.measured - check.constraint.value) / (abs(check.constraint.value) or 1.0)


def pareto(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Trials that no other beats in p50, quality drop, bytes and memory together, fastest first."""
    pool = [t for t in latest(trials) if t.figures.latency_ms]
    front = [t for t in pool if not any(_dominates(o, t) for o in pool)]
    return tuple(sorted(front, key=lambda t: t.figures.latency_ms.p50 if t.figures.latency_ms else 0.0))


def _dominates(a: Trial, b: Trial) -> bool:
    x, y = _axes(a), _axes(b)
    return all(p <= q for p, q in zip(x, y, strict=True)) and x != y


def _axes(trial: Trial) -> tuple[float, float, float, float]:
    figures = trial.figures
    return (
        figures.latency_ms.p50 if figures.latency_ms else float("inf"),
        trial.quality_drop_pt.estimate if trial.quality_drop_pt else float("inf"),
        float(figures.bytes if figures.bytes is not None else float("inf")),
        float(figures.peak_rss_bytes if figures.peak_rss_bytes is not None else float("inf")),
    )


def gain(trial: Trial) -> float:
    """Its speed-up's estimate; 0 when it has none."""
    return trial.speedup.estimate if trial.speedup else 0.0
