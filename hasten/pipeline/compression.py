"""The smaller shapes that a run tries: how deep, how wide, how long to train, and on which runtime.

Takes the trials so far (the runtimes and numbers come first), the checkpoint's facts and the request; gives recipes.
It keeps no state: a resumed run makes the same recipes from the same ledger.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from hasten.passes import PASSES
from hasten.pipeline.jobs import CheckpointFacts
from hasten.pipeline.request import Request
from hasten.pipeline.shapes import Menu
from hasten.plan.choose import gain, is_tuned_baseline, latest, may_pass, searched
from hasten.plan.ladder import nearly
from hasten.records import Config, Recipe, Trial
from hasten.runtimes import read_recipe

FEWEST_ROWS = 200
_TRAINING_SHARE = 0.15
_MOST_EPOCHS = 12
# Less than an epoch is worth it from so many steps on, of as many rows as trainings take by default.
_FEWEST_STEPS, _BATCH = 50, 32
_SIBLINGS = 3


def unknown_costs(runtime: Config) -> None:
    """Nothing was measured on ``runtime``."""


@dataclass(frozen=True, slots=True)
class Compression:
    """``rows`` are the calibration rows that there are to learn from; ``baseline_ms`` the original's p50 a row.

    ``costs`` says what a head and a neuron cost on a runtime, where that is known; it may measure it. ``settled`` are
    the epochs of an earlier sitting: with other ones its trained shapes would not be the same.
    """

    request: Request
    facts: CheckpointFacts
    rows: int
    baseline_ms: float
    costs: Callable[[Config], tuple[float, float] | None] = unknown_costs
    settled: float | None = None

    def why_not(self) -> str | None:
        """The reason why no smaller shape is tried, or ``None``."""
        bounded = bounds_quality(self.request)
        named = self._named()
        if self.request.recipe is not None:
            return "one recipe was asked for"
        if self.request.techniques is not None and not named:
            return "--techniques names none"
        if not bounded and not named:
            return "the budget has no bound on quality, and a smaller shape would always be faster"
        if not self.facts.layers:
            return f"hasten has no adapter for the family {self.facts.family}, and cannot tell its layers apart"
        if not self.menu.shapes():
            return self.why_untrained() or "; ".join(self.menu.misfits()) or "the techniques named make none"
        return None

    def why_untrained(self) -> str | None:
        """The reason why no shape can be trained, ``None`` where some can or nobody asks for it."""
        if not self._menu(1.0).trains:
            return None
        if self.rows < FEWEST_ROWS:
            return f"{self.rows} rows to learn from, {FEWEST_ROWS} are needed"
        if not self.epochs():
            return f"{self.request.time_s:.0f} s are too short to train in: about {self._shortest_s():.0f} s are needed"
        return None

    def remarks(self) -> tuple[str, ...]:
        """What a reader of the verdict should know of shapes that were not tried, or learnt little."""
        wished = self.request.recipe is not None or (self.request.techniques is not None and not self._named())
        if wished or not self.facts.layers:  # of the family it is said already
            return ()
        if reason := self.why_not():
            return (f"no smaller shapes were tried: {reason}",)
        said = self.menu.misfits()
        if reason := self.why_untrained():
            kinds = [kind for kind in self._named() if PASSES[kind].step == "recovery"]
            return (*said, f"{' and '.join(kinds)} {'was' if len(kinds) == 1 else 'were'} not tried: {reason}")
        if self.menu.trains and self.epochs() < 1:
            seen = f"about {self.epochs() * self.rows:,.0f} of {self.rows:,} rows"
            said.append(f"every training sees {seen}: the time allows no whole epoch")
        return tuple(said)

    def recipes(self, trials: Sequence[Trial]) -> tuple[Recipe, ...]:
        """The rungs on the best runtime so far; then what passes among them, on the runtimes next in line.

        A shape with a pass that only torch stores goes to torch; the others do not follow it there.
        """
        if self.why_not():
            return ()
        plain = best_runtimes(trials, self.request)
        storing = best_runtimes(trials, self.request, stored=True)
        if not plain:
            return ()
        menu = replace(self.menu, grid=getattr(plain[0], "grid", None))
        if "fisher" in menu.named:
            menu = replace(menu, unit_costs=self.costs(plain[0]))
        rungs = [Recipe(passes=p, runtime=plain[0]) for p in menu.shapes() if not is_stored(p)]
        if storing:
            kept = replace(menu, grid=getattr(storing[0], "grid", None))
            rungs += [Recipe(passes=p, runtime=storing[0]) for p in kept.shapes() if is_stored(p)]
        siblings = self._siblings(trials, plain[1:], storing[1:])
        return (*rungs, *siblings, *self._continued(trials, rungs, menu.qat()))

    @property
    def menu(self) -> Menu:
        """The shapes that the user's techniques, rows and time leave."""
        return self._menu(0.0 if self.why_untrained() else self.epochs())

    def _menu(self, epochs: float) -> Menu:
        return Menu(self._named(), self.facts.layers, epochs)

    def _named(self) -> list[str]:
        return [t for t in self.request.techniques or () if t in PASSES]

    def epochs(self) -> float:
        """As many as a seventh of the time allows at half depth: a row costs about what one request does. Whole ones;
        where not even one fits, the part that does, and 0 where that is too little to learn from."""
        if self.settled is not None:
            return self.settled
        fitting = _TRAINING_SHARE * self.request.time_s / self._epoch_s()
        if fitting >= 1:
            return float(min(_MOST_EPOCHS, math.floor(fitting)))
        part = math.floor(1e5 * fitting) / 1e5
        return part if part * math.ceil(self.rows / _BATCH) >= _FEWEST_STEPS else 0.0

    def _epoch_s(self) -> float:
        return self.rows * self.baseline_ms / 1e3 / 2

    def _shortest_s(self) -> float:
        """The time that leaves enough for an epoch, or for the fewest steps."""
        least = min(1.0, (_FEWEST_STEPS + 1) * _BATCH / self.rows)
        return least * self._epoch_s() / _TRAINING_SHARE

    def _continued(self, trials: Sequence[Trial], rungs: Sequence[Recipe], qat: Config) -> list[Recipe]:
        """Rungs that miss by little, taught as long again (what they learnt is kept); and those in integers trained on
        their grid: the shape may do, and the rounding not."""
        known = {r.id: r for r in rungs}
        missed = [t for t in latest(searched(trials)) if t.recipe_id in known and nearly(t, self.request.budget)]
        taught = [r for t in missed if PASSES[(r := known[t.recipe_id]).passes[-1].kind].teaches]
        longer = [(r, r.passes[-1]) for r in taught if PASSES[r.passes[-1].kind].again]
        on_grid = [(r, qat) for r in taught if getattr(r.runtime, "grid", None)]
        return [replace(r, passes=(*r.passes, more)) for r, more in (*longer, *on_grid)]

    def _siblings(self, trials: Sequence[Trial], plain: Sequence[Config], storing: Sequence[Config]) -> list[Recipe]:
        """The fastest trained shape that may pass, in other numbers or on another runtime: its training is done."""
        trained = [t for t in latest(searched(trials)) if t.recipe["passes"] and may_pass(t, self.request.budget)]
        if not trained:
            return []
        passes = read_recipe(max(trained, key=gain).recipe).passes
        return [Recipe(passes=passes, runtime=runtime) for runtime in (storing if is_stored(passes) else plain)]


def is_stored(passes: Sequence[Config]) -> bool:
    """Is there a pass among them that changes only what torch stores?"""
    return any(PASSES[p.kind].stored for p in passes)


def bounds_quality(request: Request) -> bool:
    """Does the budget say how much quality may be lost?"""
    return any(c.metric in ("quality_drop", "quality") for c in request.budget.constraints)


def may_train(request: Request) -> bool:
    """Could there be smaller shapes in this run, for all that is known before the data?"""
    if request.recipe is not None:
        return bool(json.loads(request.recipe)["passes"])
    named = [t for t in request.techniques or () if t in PASSES]
    return bool(named) or (request.techniques is None and bounds_quality(request))


def best_runtimes(trials: Sequence[Trial], request: Request, *, stored: bool = False) -> list[Config]:
    """Runtime configs that change no shape, the fastest that may pass first; a few.

    They are ranked by their screens alone, so that a later, longer look does not change which shapes are tried. PyTorch
    in fp32 is one of them only where there is no other, and alone for passes that change what is ``stored``.
    """
    screens = latest([t for t in searched(trials) if t.stage == "screen"])
    plain = [t for t in screens if not t.recipe["passes"] and gain(t)]
    original = [t for t in plain if is_tuned_baseline(t)]
    others = [t for t in plain if not is_tuned_baseline(t)]
    pool = original if stored or not others else others
    standing = [t for t in pool if may_pass(t, request.budget)] or pool
    ranked = sorted(standing, key=lambda t: -gain(t))
    return [read_recipe(t.recipe).runtime for t in ranked[: 1 + _SIBLINGS]]
