"""The smaller shapes that a run tries: how deep, how wide, how long to train, and on which runtime.

Takes the trials so far (the runtimes and numbers come first), the checkpoint's facts and the request; gives recipes.
It keeps no state: a resumed run makes the same recipes from the same ledger.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hasten.passes import PASSES, configs
from hasten.pipeline.jobs import CheckpointFacts
from hasten.pipeline.request import Request
from hasten.plan.choose import gain, is_tuned_baseline, latest, may_pass, searched
from hasten.records import Config, Recipe, Trial
from hasten.runtimes import read_recipe

FEWEST_ROWS = 200
_TRAINING_SHARE = 0.15
_MOST_EPOCHS = 12
_SIBLINGS = 3


@dataclass(frozen=True, slots=True)
class Compression:
    """``rows`` are the calibration rows that there are to learn from; ``baseline_ms`` the original's p50 a row."""

    request: Request
    facts: CheckpointFacts
    rows: int
    baseline_ms: float

    def why_not(self) -> str | None:
        """The reason why no smaller shape is tried, or ``None``."""
        bounded = {c.metric for c in self.request.budget.constraints} & {"quality_drop", "quality"}
        named = self._named()
        if self.request.techniques is not None and not named:
            return "--techniques names none"
        if not bounded and not named:
            return "the budget has no bound on quality, and a smaller shape would always be faster"
        if self.rows < FEWEST_ROWS:
            return f"{self.rows} rows to learn from, {FEWEST_ROWS} are needed"
        if self._allowed("distill") and self.epochs() < 1:
            return f"{self.request.time_s:.0f} s are too short to train in: about {self._shortest_s():.0f} s are needed"
        return None

    def recipes(self, trials: Sequence[Trial]) -> tuple[Recipe, ...]:
        """The rungs on the best runtime so far; then what passes among them, on the runtimes next in line."""
        runtimes = best_runtimes(trials, self.request)
        if not runtimes or self.why_not():
            return ()
        rungs = [Recipe(passes=p, runtime=runtimes[0]) for p in self.shapes()]
        return (*rungs, *self._siblings(trials, runtimes[1:]))

    def shapes(self) -> list[tuple[Config, ...]]:
        """Passes of every rung; the middle of the ladder first, where a bisection begins."""
        table, named = configs(), self._named()
        recovery = (table["distill"](epochs=self.epochs()),) if self._allowed("distill") else ()
        numbers = tuple(table[kind]() for kind in named if PASSES[kind].step == "numbers")
        narrowing = [kind for kind in named if PASSES[kind].step == "structure" and kind != "layers"]
        found: list[tuple[Config, ...]] = []
        for count in depths(self.facts.layers) if self._allowed("layers") else [self.facts.layers]:
            shallow = () if count == self.facts.layers else (table["layers"](count=count),)
            if shallow or numbers:
                found.append((*shallow, *(recovery if shallow else ()), *numbers))
            # Narrowing what is already shallow costs as much as another layer less, and helps less.
            if 2 * count >= self.facts.layers:
                thin = [table[k](keep=keep) for k in narrowing or self._narrowed_by for keep in self._keeps()]
                found += [(*shallow, one, *recovery, *numbers) for one in thin]
        return found

    @property
    def _narrowed_by(self) -> tuple[str, ...]:
        """What narrows when nothing is named."""
        return () if self._named() else ("kprune",)

    def _keeps(self) -> tuple[float, ...]:
        return (0.6, 0.4) if self._named() else (0.6,)

    def _named(self) -> list[str]:
        return [t for t in self.request.techniques or () if t in PASSES]

    def epochs(self) -> int:
        """As many as a seventh of the time allows at half depth: a row costs about what one request does."""
        epoch_s = self.rows * self.baseline_ms / 1e3 / 2
        return min(_MOST_EPOCHS, math.floor(_TRAINING_SHARE * self.request.time_s / epoch_s))

    def _shortest_s(self) -> float:
        return self.rows * self.baseline_ms / 1e3 / 2 / _TRAINING_SHARE

    def _allowed(self, kind: str) -> bool:
        return not self._named() or kind in self._named()

    def _siblings(self, trials: Sequence[Trial], runtimes: Sequence[Config]) -> list[Recipe]:
        """The fastest trained shape that may pass, in other numbers or on another runtime: its training is done."""
        trained = [t for t in latest(searched(trials)) if t.recipe["passes"] and may_pass(t, self.request.budget)]
        if not trained:
            return []
        passes = read_recipe(max(trained, key=gain).recipe).passes
        return [Recipe(passes=passes, runtime=runtime) for runtime in runtimes]


def best_runtimes(trials: Sequence[Trial], request: Request) -> list[Config]:
    """Runtime configs that change no shape, the fastest that may pass first; a few."""
    plain = [t for t in latest(searched(trials)) if not t.recipe["passes"] and not is_tuned_baseline(t) and gain(t)]
    standing = [t for t in plain if may_pass(t, request.budget)] or plain
    ranked = sorted(standing, key=lambda t: -gain(t))
    return [read_recipe(t.recipe).runtime for t in ranked[: 1 + _SIBLINGS]]


def depths(layers: int) -> list[int]:
    """Layer counts to try: about half first, then towards both ends; ``layers`` itself is for passes that narrow."""
    shares = (0.5, 0.34, 0.67, 0.17, 0.84, 1.0)
    return list(dict.fromkeys(max(1, round(layers * share)) for share in shares))
