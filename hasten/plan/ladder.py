"""Which smaller shape to train next: a bisection over rungs that were timed before they are trained.

Takes trials and rungs (recipes with passes), gives the next one worth its training. A rung's latency is known from its
rehearsal (the shape without the training), its quality only after. Shapes that are slower than one that passes cannot
win; shapes that are faster than one that fails by far will hardly pass. One that misses by a hair is trained on before
another one is begun. Quality counts by its estimate here: no later look at the same rows would change it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hasten.passes import PASSES
from hasten.plan.choose import gain, latest, may_pass, passes, searched, trial_checks
from hasten.records import Budget, Recipe, Trial

# A rung must promise this much over the best so far to be worth its training.
WORTH = 1.05
# A drop this far above the bound, in points, says that nothing smaller will do.
_FAR_PT = 1.0
_NEAR_SHARE = 0.75
# So little above the bound, more training is tried before another shape: it costs as much, and is nearer.
_HAIR_PT = 0.5
_QUALITY = ("quality_drop", "quality")
_KNOWN_BEFORE = ("p50_ms", "p90_ms", "bytes", "peak_rss_bytes")
_SLACK = 1.15  # a rehearsal is a short look
MOST_KEPT = 6  # each is a copy of its weights on the disk


def next_rung(trials: Sequence[Trial], rungs: Sequence[Recipe], *, budget: Budget) -> Trial | None:
    """The rehearsal of the rung to train next, ``None`` when no other rung can change the answer."""
    open_ = open_rungs(trials, rungs, budget=budget)
    hair = {t.recipe_id for t in latest(searched(trials)) if 0.0 < _points_missed(t, budget) <= _HAIR_PT}
    going_on = {r.id for r in rungs if replace(r, passes=r.passes[:-1]).id in hair}
    chosen = [t for t in open_ if t.recipe_id in going_on] or open_
    return chosen[(len(chosen) - 1) // 2] if chosen else None


def open_rungs(trials: Sequence[Trial], rungs: Sequence[Recipe], *, budget: Budget) -> list[Trial]:
    """Rehearsals of the rungs that may still win, slowest first."""
    ids = {r.id for r in rungs}
    held = {t.recipe_id: t for t in trials if t.stage == "preflight" and t.status == "ok" and t.recipe_id in ids}
    tried = {t.recipe_id for t in trials if t.stage == "screen"}
    ceiling, ends = _ceiling(trials, budget), [e for e in _ends(trials, budget) if e[0].recipe_id in held]
    fit = [
        t for i, t in held.items()
        if i not in tried and _floor(ends, t) < expected_ms(t) * WORTH <= ceiling
        and not _breaks_a_bound(t, budget)
    ]  # fmt: skip
    return sorted(fit, key=lambda t: -expected_ms(t))


def left_out(trials: Sequence[Trial], *, budget: Budget) -> list[tuple[Trial, str]]:
    """Rehearsals of the shapes that were never built in full, each with the reason; those that the trials tell one of
    are not among them."""
    begun = {t.recipe_id for t in trials if t.stage != "preflight"}
    rehearsed = {t.recipe_id: t for t in trials if t.stage == "preflight" and t.recipe["passes"]}
    held = [t for t in rehearsed.values() if t.status == "ok" and t.recipe_id not in begun]
    ends = _ends(trials, budget)
    return [(t, f"{_verb(t)}: {_why_left_out(t, trials, ends, budget)}") for t in held]


def _why_left_out(rung: Trial, trials: Sequence[Trial], ends: Sequence[tuple[Trial, float]], budget: Budget) -> str:
    ms = expected_ms(rung)
    if _breaks_a_bound(rung, budget):
        return "its rehearsal breaks a bound clearly"
    top = _fastest_standing(trials, budget)
    if top is not None and top.figures.latency_ms and ms * WORTH > top.figures.latency_ms.p50:
        own = f"at about {ms:.2f} ms"
        return f"{own} it is hardly faster than {top.label} ({top.figures.latency_ms.p50:.2f} ms), which passes"
    lost = next((t for t, end in ends if _alike(t, rung) and end >= ms * WORTH), None)
    if lost is not None:
        return f"{lost.label} is slower, and lost too much quality already"
    needs = rung.prediction.build_s if rung.prediction else 0.0
    return f"the search ended before its turn; it needs about {needs:.0f} s"


def _verb(rung: Trial) -> str:
    return "not trained" if _taught(rung) else "not measured in full"


def worth_keeping(trials: Sequence[Trial], budget: Budget) -> list[Trial]:
    """Trained shapes that a run which goes on may take or train on: those that may pass, fastest first, and those that
    miss by little; a few."""
    tried = [t for t in latest(searched(trials)) if _taught(t)]
    standing = sorted((t for t in tried if may_pass(t, budget)), key=lambda t: -gain(t))
    missed = [t for t in tried if nearly(t, budget) and t not in standing]
    return [*standing, *missed][:MOST_KEPT]


def expected_ms(rehearsal: Trial) -> float:
    """The latency that the rung will have."""
    return rehearsal.prediction.latency_ms if rehearsal.prediction else float("inf")


def nearly(trial: Trial, budget: Budget) -> bool:
    """Does it lose more quality than it may, and by at most a point?"""
    return 0.0 < _points_missed(trial, budget) <= _FAR_PT


def _points_missed(trial: Trial, budget: Budget) -> float:
    """By how many points the worst bound on quality is missed; 0 when none is. Other bounds do not count: a shape that
    is too slow says nothing against smaller ones."""
    own = replace(budget, constraints=tuple(c for c in budget.constraints if c.metric in _QUALITY))
    found = [(c.measured, c.constraint.value) for c in trial_checks(trial, own) if not c.holds]
    return max((abs(measured - value) for measured, value in found if measured is not None), default=0.0)


def _breaks_a_bound(rehearsal: Trial, budget: Budget) -> bool:
    """Was the untrained shape already clearly too slow or too large?"""
    own = replace(budget, constraints=tuple(c for c in budget.constraints if c.metric in _KNOWN_BEFORE))
    found = [(c.constraint.value, c.measured) for c in trial_checks(rehearsal, own)]
    return any(measured is not None and measured > value * _SLACK for value, measured in found)


def _ceiling(trials: Sequence[Trial], budget: Budget) -> float:
    """The p50 of the fastest that passes: a rung must beat it."""
    top = _fastest_standing(trials, budget)
    return float("inf") if top is None or top.figures.latency_ms is None else top.figures.latency_ms.p50


def _fastest_standing(trials: Sequence[Trial], budget: Budget) -> Trial | None:
    standing = [t for t in latest(searched(trials)) if passes(t, budget) and gain(t) and t.figures.latency_ms]
    return min(standing, key=lambda t: t.figures.latency_ms.p50 if t.figures.latency_ms else 0.0, default=None)


def _ends(trials: Sequence[Trial], budget: Budget) -> list[tuple[Trial, float]]:
    """Shapes that lost too much quality, and the latency at and below which each says that nothing will do."""
    held = {t.recipe_id: t for t in trials if t.stage == "preflight" and t.status == "ok" and t.recipe["passes"]}
    failed = [t for t in latest(searched(trials)) if t.recipe_id in held and _points_missed(t, budget)]
    return [(t, expected_ms(held[t.recipe_id]) * (_NEAR_SHARE if nearly(t, budget) else 1.0)) for t in failed]


def _floor(ends: Sequence[tuple[Trial, float]], rung: Trial) -> float:
    """The latency at and below which this rung is given up: that of the slowest that lost too much quality in a way
    that says something about it, less when that was near."""
    return max((ms for trial, ms in ends if _alike(trial, rung)), default=0.0)


def _alike(failed: Trial, rung: Trial) -> bool:
    """Were they made in the same ways, or one in some of the other's, for the same runtime? A control at random says
    nothing about a choice that is well made, nor does what was taught in fewer ways about one taught in more."""
    x, y = ({p["kind"] for p in t.recipe["passes"]} for t in (failed, rung))
    same = failed.recipe["runtime"] == rung.recipe["runtime"]
    return same and (x <= y or y <= x) and _taught(rung) <= _taught(failed)


def _taught(trial: Trial) -> set[str]:
    kinds = {str(p["kind"]) for p in trial.recipe["passes"]}
    return {kind for kind in kinds if kind in PASSES and PASSES[kind].step == "recovery"}
