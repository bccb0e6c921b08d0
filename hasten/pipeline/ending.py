"""How a run ends: final test, verdict, and a bundle that deserves its name.

Takes the runner, the ledger and what the search left, gives a written verdict. The
folder ``bundle`` holds only what passed the final test; a closest miss goes beside it.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from hasten.passes import PASSES
from hasten.pipeline.answering import doubts_of_answers
from hasten.pipeline.compress import passes_id
from hasten.pipeline.final import Finalist, Tuned, broken, outcome_of, run_finals, tuned_duel
from hasten.pipeline.pacing import ROWS_CUT
from hasten.pipeline.publish import Publisher
from hasten.pipeline.trials import TrialRunner
from hasten.pipeline.workspace import Workspace
from hasten.plan.choose import is_tuned_baseline, untried
from hasten.plan.ladder import worth_keeping
from hasten.plan.sentences import relaxations, verdict_sentence
from hasten.records import Host, Measured, Recipe, Rejected, Trial, Verdict
from hasten.report.steps import bought, steps
from hasten.report.verdict_json import FILE_NAME, write_verdict
from hasten.runtimes import configs, read_recipe

# A search that finds something takes about so many times what measuring the original takes.
_TIMES_THE_ORIGINAL = 5.0


@dataclass(frozen=True, slots=True)
class Ending:
    """Everything the last steps need. ``elapsed`` says how long the run took so far, with earlier sittings; ``remarks``
    what the search has to say of itself."""

    runner: TrialRunner
    space: Workspace
    publisher: Publisher
    host: Host
    interrupted: bool
    elapsed: Callable[[], float]
    remarks: tuple[str, ...] = ()

    def run(self) -> Verdict:
        """Final test, verdict, bundle; ``verdict.json`` is written last."""
        ledger = self.space.ledger
        out: frozenset[str] = frozenset()
        while True:
            finalist = run_finals(self.runner, ledger, quick=self.interrupted, without=out)
            self._keep_training(finalist)
            self._measure_steps(finalist)
            verdict = self._verdict(finalist, tuned_duel(self.runner, ledger.trials(), finalist))
            try:
                self._settle_bundle(finalist, verdict)
                break
            except Rejected as error:  # its files do not verify: then it is not the answer
                assert finalist is not None
                ledger.append_trial(broken(finalist.trial, error))
                out |= {finalist.trial.recipe_id}
        if finalist is not None:
            ledger.append_samples("baseline", finalist.baseline_ms)
            ledger.append_samples("chosen", finalist.chosen_ms)
        verdict = replace(verdict, steps=tuple(bought(steps(verdict, ledger.trials()))))
        write_verdict(self.space.out / FILE_NAME, verdict)
        return verdict

    def _doubts(self, trials: Sequence[Trial]) -> list[str]:
        """What a reader should know before believing the verdict."""
        short = untried(trials) and not self.interrupted
        doubts = too_short(self.elapsed(), self.runner.request.time_s) if short else []
        if self.runner.request.recipe is not None:
            doubts += not_built(trials, read_recipe(json.loads(self.runner.request.recipe)).id)
        if not any(is_tuned_baseline(t) and t.stage != "preflight" and t.status == "ok" for t in self._rivals(trials)):
            doubts.append("no other set-up of the original was measured: it may not be at its best (give more --time)")
        finals = sum(t.stage == "final" and t.status == "ok" for t in trials)
        if finals > 1:
            doubts.append(f"the final test's rows were looked at {finals} times in this folder: later looks flatter")
        return doubts

    def _rivals(self, trials: Sequence[Trial]) -> list[Trial]:
        return [t for t in trials if t.recipe_id != self.runner.baseline.id]

    def _keep_training(self, finalist: Finalist | None) -> None:
        """With more time the run goes on from the weights of the pick, and from those of a few trained shapes that may
        still take its place or be trained on. What lost by far is not kept: only another budget would ask for it. One
        that was interrupted goes on from all that it had."""
        if self.interrupted:
            self.space.keep_all_passes()
        passes = read_recipe(finalist.trial.recipe).passes if finalist else ()
        self.space.trained.update(passes_id(passes[:count]) for count in range(1, len(passes) + 1))
        for trial in worth_keeping(self.space.ledger.trials(), self.runner.request.budget):
            passes = read_recipe(trial.recipe).passes
            last = max((n for n, p in enumerate(passes, 1) if PASSES[p.kind].step == "recovery"), default=0)
            self.space.trained.update([passes_id(passes[:last])] if last else [])

    def _measure_steps(self, finalist: Finalist | None) -> None:
        """The chosen passes one by one on the original's runtime, then all on the chosen runtime in fp32: what each
        bought. Their training is done already."""
        if finalist is None or self.interrupted:
            return
        chosen = read_recipe(finalist.trial.recipe)
        known = {t.recipe_id for t in self.space.ledger.trials() if t.stage == "screen"}
        path = [Recipe(chosen.passes[:n], self.runner.baseline.runtime) for n in range(1, len(chosen.passes) + 1)]
        if chosen.passes:
            path.append(Recipe(chosen.passes, configs()[chosen.runtime.kind]()))
        for recipe in path:
            if recipe.id not in known:
                self.space.ledger.append_trial(self.runner.run(recipe, "screen"))

    def _verdict(self, finalist: Finalist | None, tuned: Tuned) -> Verdict:
        request, trials = self.runner.request, self.space.ledger.trials()
        row = self.runner.baseline_row()
        baseline = Measured(row.recipe, row.recipe_id, row.label, finalist.baseline if finalist else row.figures)
        outcome = outcome_of(finalist, tuned)
        chosen = finalist.measured if finalist else None
        current: Trial | None = finalist.trial if finalist else None
        gain = finalist.speedup if finalist else None
        drop = finalist.quality_drop if finalist else None
        checks = finalist.checks if finalist else ()
        sentence = verdict_sentence(
            outcome, baseline=baseline, tuned=tuned.measured, chosen=chosen, speedup=gain, quality_drop=drop,
            checks=checks, untried=untried(trials),
        )  # fmt: skip
        return Verdict(
            outcome=outcome,
            sentence=sentence,
            budget=request.budget,
            task=request.task,
            source=request.model.source,
            baseline=baseline,
            tuned_baseline=tuned.measured,
            chosen=chosen,
            speedup=gain,
            speedup_vs_tuned=tuned.speedup,
            quality_drop=drop,
            quality_p_value=finalist.p_value if finalist else None,
            checks=checks,
            relaxations=relaxations(trials, request.budget, current=current),
            flips=finalist.flips if finalist else (),
            splits=self.runner.prepared.splits,
            host=self.host,
            elapsed_s=self.elapsed(),
            warnings=(
                *self.runner.prepared.warnings,
                *self.remarks,
                *self._doubts(trials),
                *self._doubts_of_answers(),
                *_cut_short(finalist),
            ),
            interrupted=self.interrupted,
        )

    def _doubts_of_answers(self) -> tuple[str, ...]:
        full = self.runner.full
        return (
            ()
            if full is None
            else doubts_of_answers(full.selection, self.runner.prepared.answers, full.figures.quality)
        )

    def _settle_bundle(self, finalist: Finalist | None, verdict: Verdict) -> None:
        bundle, near = self.space.out / "bundle", self.space.out / "closest-miss"
        asked = bundle if self.runner.request.recipe is not None else None  # it is wanted, faster or not
        keep = {"met": bundle, "not_met": near, "baseline_best": asked}[verdict.outcome]
        if finalist is not None and keep is not None:
            built = self.runner.built_in_full(read_recipe(finalist.trial.recipe))
            self.publisher.publish(finalist.trial, built, measured_on="test", name=keep.name)
        for stale in {bundle, near} - {keep if finalist is not None else None}:
            shutil.rmtree(stale, ignore_errors=True)


def too_short(elapsed_s: float, limit_s: float) -> list[str]:
    """How much time would do, where the original alone took all of it."""
    if elapsed_s < limit_s:
        return []
    minutes = math.ceil(_TIMES_THE_ORIGINAL * elapsed_s / 60.0)
    return [
        f"loading and measuring the original took {elapsed_s:.0f} s of the {limit_s:.0f} s that were given: give about "
        f"--time {minutes}m, or fewer rows (--max-rows)"
    ]


def not_built(trials: Sequence[Trial], recipe_id: str) -> list[str]:
    """Why the recipe that was asked for is not what the verdict is about."""
    last = next((t for t in reversed(trials) if t.recipe_id == recipe_id), None)
    if last is None or last.status == "ok":
        return []
    return [f"the recipe that was asked for, {last.label}, fell at {last.rejected_at}: {last.reason}"]


def _cut_short(finalist: Finalist | None) -> list[str]:
    """What the passes of the choice say of rows that they had no time to look at."""
    return [] if finalist is None else [note for note in finalist.trial.notes if ROWS_CUT in note]
