"""What to do next: successive halving as a function of the trials so far.

Takes the append-only trials, the recipes and the clock; gives one action. It keeps no
state, so a run that was killed decides as if it had never stopped. Every recipe is
first tried on a two-layer copy (preflight), then in full with a short duel (screen);
the best few meet in a long one (contest). Time for the final test is never spent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from hasten.plan.choose import gain, is_tuned_baseline, latest, may_pass, passes, searched
from hasten.plan.ladder import next_rung
from hasten.records import Budget, Recipe, Stage, Trial

PREFLIGHT_SHARE = 0.4
CONTESTANTS = 3
SLOWER = 2.0
NO_TIME = "time"
_SLOW_PREFLIGHT_S = 45.0
_DEFAULT_S: Mapping[Stage, float] = {"preflight": 10.0, "screen": 20.0, "contest": 20.0, "final": 30.0}


@dataclass(frozen=True, slots=True)
class Clock:
    """Seconds spent, the user's limit, and what the final test is expected to take."""

    elapsed_s: float
    limit_s: float
    final_s: float

    @property
    def left_s(self) -> float:
        """What the search may still spend."""
        return self.limit_s - self.elapsed_s - self.final_s


@dataclass(frozen=True, slots=True)
class Run:
    """Run this recipe at this stage."""

    recipe_id: str
    stage: Stage


@dataclass(frozen=True, slots=True)
class Skip:
    """Put this recipe into the ledger as not worth its stage, with the reason."""

    recipe_id: str
    stage: Stage
    rejected_at: str
    reason: str

    def row(self, recipe: Recipe) -> Trial:
        """What the ledger says of it."""
        return Trial(
            recipe=recipe.to_dict(), recipe_id=recipe.id, label=recipe.label, stage=self.stage, status="rejected",
            elapsed_s=0.0, rejected_at=self.rejected_at, reason=self.reason,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finish:
    """Nothing more to try, or no time for it."""

    reason: str


Action = Run | Skip | Finish


def next_action(trials: Sequence[Trial], recipes: Sequence[Recipe], clock: Clock, *, budget: Budget) -> Action:
    """The next step. Deterministic; never repeats a finished (recipe, stage); always comes to Finish.

    Order: cheap preflights, with one early screen as soon as each runtime has had one, or sooner if another
    preflight would leave no time for it (so that an artifact is on disk early); screens; preflights and screens
    of recipes that are slow to build; smaller shapes, rehearsed and then trained from the middle of the ladder; the
    contest.
    """
    plain = [r for r in recipes if not r.passes]
    action = _of_plain(trials, plain, clock) or _of_shapes(trials, [r for r in recipes if r.passes], clock, budget)
    if action is not None:
        return action
    done = {(t.recipe_id, t.stage) for t in trials}
    contest = next((i for i in contestants(trials, recipes, budget) if (i, "contest") not in done), None)
    if contest is not None and _typical("contest", trials, recipes) <= clock.left_s:
        return Run(contest, "contest")
    known = {r.id for r in recipes}
    unfinished = contest is not None or any(t.rejected_at == NO_TIME and t.recipe_id in known for t in trials)
    return Finish("the time is used up" if unfinished else "every candidate was tried")


def _of_plain(trials: Sequence[Trial], recipes: Sequence[Recipe], clock: Clock) -> Action | None:
    """Recipes that change runtime and numbers only."""
    done = {(t.recipe_id, t.stage) for t in trials}
    todo = [r for r in recipes if (r.id, "preflight") not in done]
    cheap = [r for r in todo if not slow_to_build(r)]
    waiting = _by_prediction(trials, recipes, done)
    if waiting and _early_screen_due(cheap, trials, recipes, clock):
        return _screen(waiting[0], trials, recipes, clock)
    if cheap:
        return _preflight(cheap[0], trials, recipes, clock)
    if waiting:
        return _screen(waiting[0], trials, recipes, clock)
    return _preflight(todo[0], trials, recipes, clock) if todo else None


def _of_shapes(trials: Sequence[Trial], recipes: Sequence[Recipe], clock: Clock, budget: Budget) -> Action | None:
    """Recipes with passes: all are rehearsed (their latency and the time to train are known then), few are trained."""
    done = {(t.recipe_id, t.stage) for t in trials}
    todo = [r for r in recipes if (r.id, "preflight") not in done]
    if todo:
        return _preflight(todo[0], trials, recipes, clock)
    chosen = next_rung(trials, recipes, budget=budget)
    if chosen is None:
        return None
    needed = (chosen.prediction.build_s if chosen.prediction else 0.0) + _DEFAULT_S["screen"]
    if needed > clock.left_s:
        reason = f"not trained: about {needed:.0f} s are needed, {max(0.0, clock.left_s):.0f} s are left"
        return Skip(chosen.recipe_id, "screen", NO_TIME, reason)
    return Run(chosen.recipe_id, "screen")


def only(trials: Sequence[Trial], recipe: Recipe) -> Run | None:
    """The next look at a recipe that was asked for by itself: it is built and measured whatever is expected of it.

    ``None`` after its screen, or when it cannot be built.
    """
    own = {t.stage: t for t in trials if t.recipe_id == recipe.id}
    looks: tuple[Stage, ...] = ("preflight", "screen")
    for stage in looks:
        if stage not in own:
            return Run(recipe.id, stage)
        if own[stage].status != "ok":
            return None
    return None


def slow_to_build(recipe: Recipe) -> bool:
    """Compilers take a minute where exporters take seconds."""
    return bool(recipe.to_dict()["runtime"].get("compile"))


def without_old_skips(trials: Sequence[Trial], *, before: int) -> tuple[Trial, ...]:
    """The trials, less what an earlier sitting (the first ``before`` rows) skipped for lack of time only."""
    return tuple(t for n, t in enumerate(trials) if n >= before or t.rejected_at != NO_TIME)


def _early_screen_due(
    cheap: Sequence[Recipe], trials: Sequence[Trial], recipes: Sequence[Recipe], clock: Clock
) -> bool:
    ids = {r.id for r in recipes}
    screened = any(t.stage == "screen" and t.recipe_id in ids for t in trials)
    tried = {t.recipe["runtime"]["kind"] for t in trials if t.stage == "preflight" and t.recipe_id in ids}
    last_chance = clock.left_s < _typical("preflight", trials, recipes) + _typical("screen", trials, recipes)
    return bool(cheap) and not screened and (last_chance or {r.runtime.kind for r in recipes} <= tried)


def _preflight(recipe: Recipe, trials: Sequence[Trial], recipes: Sequence[Recipe], clock: Clock) -> Action:
    """On the two-layer copy, unless preflights have had their share of the time."""
    ids = {r.id for r in recipes}
    spent = sum(t.elapsed_s for t in trials if t.stage == "preflight" and t.recipe_id in ids)
    expected = _SLOW_PREFLIGHT_S if slow_to_build(recipe) else _typical("preflight", trials, recipes)
    # A screen of a compiled model builds it again, in full.
    if expected * (2 if slow_to_build(recipe) else 1) > clock.left_s or spent > PREFLIGHT_SHARE * clock.limit_s:
        reason = f"not tried: {max(0.0, clock.left_s):.0f} s were left for the search"
        return Skip(recipe.id, "preflight", NO_TIME, reason)
    return Run(recipe.id, "preflight")


def contestants(trials: Sequence[Trial], recipes: Sequence[Recipe], budget: Budget) -> tuple[str, ...]:
    """The fastest candidates that may pass, and the best plain fp32 form of the baseline's runtime."""
    known = {r.id for r in recipes}
    ranked = sorted((t for t in latest(searched(trials)) if t.recipe_id in known), key=lambda t: -gain(t))
    rivals = [t for t in ranked if not is_tuned_baseline(t)]
    # A short screen may be unlucky; whoever failed the long look makes room for the next.
    standing = [t for t in rivals if (passes if t.stage == "contest" else may_pass)(t, budget)]
    tuned = [t.recipe_id for t in ranked if is_tuned_baseline(t)][:1]
    return (*(t.recipe_id for t in (standing or rivals[:1])[:CONTESTANTS]), *tuned)


def _screen(first: Trial, trials: Sequence[Trial], recipes: Sequence[Recipe], clock: Clock) -> Action:
    """Run the candidate in full, or say why not: hopeless by its prediction, or no time."""
    screened = [t for t in trials if t.stage == "screen" and t.status == "ok" and t.figures.latency_ms]
    kind = first.recipe["runtime"]["kind"]
    others = {r.id for r in recipes}
    seen_kinds = {t.recipe["runtime"]["kind"] for t in screened if t.recipe_id in others}
    best = min((t.figures.latency_ms.p50 for t in screened if t.figures.latency_ms), default=None)
    predicted = first.prediction.latency_ms if first.prediction else None
    if best is not None and predicted is not None and kind in seen_kinds and predicted > SLOWER * best:
        reason = f"predicted {predicted:.2f} ms, {predicted / best:.1f}x the best so far ({best:.2f} ms)"
        return Skip(first.recipe_id, "screen", "pruned", reason)
    expected = max(_typical("screen", trials, recipes), first.prediction.build_s if first.prediction else 0.0)
    # Without any candidate there would be nothing to test: the first may use the final's time too.
    left_s = clock.left_s if seen_kinds else clock.limit_s - clock.elapsed_s
    if expected > left_s:
        reason = f"not tried in full: about {expected:.0f} s are needed, {max(0.0, left_s):.0f} s are left"
        return Skip(first.recipe_id, "screen", NO_TIME, reason)
    return Run(first.recipe_id, "screen")


def _by_prediction(trials: Sequence[Trial], recipes: Sequence[Recipe], done: set[tuple[str, Stage]]) -> list[Trial]:
    """Preflights that held and await their screen, the fastest predicted first."""
    known = {r.id for r in recipes}
    held = [
        t for t in trials
        if t.stage == "preflight" and t.status == "ok" and t.recipe_id in known and (t.recipe_id, "screen") not in done
    ]  # fmt: skip
    return sorted(held, key=lambda t: t.prediction.latency_ms if t.prediction else float("inf"))


def _typical(stage: Stage, trials: Sequence[Trial], recipes: Sequence[Recipe]) -> float:
    """Median seconds that a candidate's stage took in this run, a guess before the first."""
    ids = {r.id for r in recipes}
    took = [t.elapsed_s for t in trials if t.stage == stage and t.status == "ok" and t.recipe_id in ids]
    return median(took) if took else _DEFAULT_S[stage]
