"""Which smaller shape to train next: a bisection over rungs that were timed before they are trained.

Takes trials and rungs (recipes with passes), gives the next one worth its training. A rung's latency is known from its
rehearsal (the shape without the training), its quality only after. Shapes that are slower than one that passes cannot
win; shapes that are faster than one that fails by far will hardly pass.
"""

from __future__ import annotations

from collections.abc import Sequence

from hasten.plan.choose import gain, latest, may_pass, searched
from hasten.records import Budget, Recipe, Trial

# A rung must promise this much over the best so far to be worth its training.
WORTH = 1.05
# A drop this far above the bound, in points, says that nothing smaller will do.
_FAR_PT = 1.0
_NEAR_SHARE = 0.75


def next_rung(trials: Sequence[Trial], rungs: Sequence[Recipe], *, budget: Budget) -> Trial | None:
    """The rehearsal of the rung to train next, ``None`` when no other rung can change the answer."""
    open_ = open_rungs(trials, rungs, budget=budget)
    return open_[(len(open_) - 1) // 2] if open_ else None


def open_rungs(trials: Sequence[Trial], rungs: Sequence[Recipe], *, budget: Budget) -> list[Trial]:
    """Rehearsals of the rungs that may still win, slowest first."""
    ids = {r.id for r in rungs}
    held = {t.recipe_id: t for t in trials if t.stage == "preflight" and t.status == "ok" and t.recipe_id in ids}
    tried = {t.recipe_id for t in trials if t.stage == "screen"}
    ceiling, floor = _ceiling(trials, budget), _floor(trials, held, budget)
    fit = [t for i, t in held.items() if i not in tried and floor < expected_ms(t) * WORTH <= ceiling]
    return sorted(fit, key=lambda t: -expected_ms(t))


def expected_ms(rehearsal: Trial) -> float:
    """The latency that the rung will have."""
    return rehearsal.prediction.latency_ms if rehearsal.prediction else float("inf")


def _ceiling(trials: Sequence[Trial], budget: Budget) -> float:
    """The p50 of the fastest that may pass: a rung must beat it."""
    standing = [t for t in latest(searched(trials)) if may_pass(t, budget) and gain(t) and t.figures.latency_ms]
    return min((t.figures.latency_ms.p50 for t in standing if t.figures.latency_ms), default=float("inf"))


def _floor(trials: Sequence[Trial], held: dict[str, Trial], budget: Budget) -> float:
    """The latency at and below which rungs are given up: that of the slowest that failed, less when it was near."""
    failed = [t for t in latest(searched(trials)) if t.recipe_id in held and not may_pass(t, budget)]
    floors = [expected_ms(held[t.recipe_id]) * (_NEAR_SHARE if nearly(t, budget) else 1.0) for t in failed]
    return max(floors, default=0.0)


def nearly(trial: Trial, budget: Budget) -> bool:
    """Does it fail, and lose at most a point more than it may?"""
    bound = next((c.value for c in budget.constraints if c.metric == "quality_drop"), 0.0)
    drop = trial.quality_drop_pt
    return not may_pass(trial, budget) and drop is not None and drop.estimate <= bound + _FAR_PT
