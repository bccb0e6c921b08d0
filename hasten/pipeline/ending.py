"""How a run ends: final test, verdict, and a bundle that deserves its name.

Takes the runner, the ledger and what the search left, gives a written verdict. The
folder ``bundle`` holds only what passed the final test; a closest miss goes beside it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass

from hasten.pipeline.final import Finalist, outcome_of, run_finals, tuned_duel
from hasten.pipeline.publish import Publisher
from hasten.pipeline.trials import TrialRunner
from hasten.pipeline.workspace import Workspace
from hasten.plan.sentences import relaxations, verdict_sentence
from hasten.records import Host, Interval, Measured, Trial, Verdict
from hasten.report.verdict_json import FILE_NAME, write_verdict
from hasten.runtimes import read_recipe


@dataclass(frozen=True, slots=True)
class Ending:
    """Everything the last steps need. ``elapsed`` says how long the run took so far, with earlier sittings."""

    runner: TrialRunner
    space: Workspace
    publisher: Publisher
    host: Host
    warnings: tuple[str, ...]
    interrupted: bool
    elapsed: Callable[[], float]

    def run(self) -> Verdict:
        """Final test, verdict, bundle; ``verdict.json`` is written last."""
        ledger = self.space.ledger
        finalist = run_finals(self.runner, ledger, quick=self.interrupted)
        tuned, versus_tuned = tuned_duel(self.runner, ledger.rows.trials(), finalist)
        verdict = self._verdict(finalist, tuned, versus_tuned)
        self._settle_bundle(finalist, verdict)
        if finalist is not None:
            ledger.append_samples("baseline", finalist.baseline_ms)
            ledger.append_samples("chosen", finalist.chosen_ms)
        write_verdict(self.space.out / FILE_NAME, verdict)
        return verdict

    def _verdict(self, finalist: Finalist | None, tuned: Measured, versus_tuned: Interval | None) -> Verdict:
        request, trials = self.runner.request, self.space.ledger.rows.trials()
        row = self.runner.baseline_row()
        baseline = Measured(row.recipe, row.recipe_id, row.label, finalist.baseline if finalist else row.figures)
        outcome = outcome_of(finalist, versus_tuned)
        chosen = finalist.measured if finalist else None
        current: Trial | None = finalist.trial if finalist else None
        gain = finalist.speedup if finalist else None
        drop = finalist.quality_drop if finalist else None
        checks = finalist.checks if finalist else ()
        sentence = verdict_sentence(
            outcome, baseline=baseline, tuned=tuned, chosen=chosen, speedup=gain, quality_drop=drop, checks=checks
        )
        return Verdict(
            outcome=outcome,
            sentence=sentence,
            budget=request.budget,
            task=request.task,
            source=request.model.source,
            baseline=baseline,
            tuned_baseline=tuned,
            chosen=chosen,
            speedup=gain,
            speedup_vs_tuned=versus_tuned,
            quality_drop=drop,
            quality_p_value=finalist.p_value if finalist else None,
            checks=checks,
            relaxations=relaxations(trials, request.budget, current=current),
            flips=finalist.flips if finalist else (),
            splits=self.runner.prepared.splits,
            host=self.host,
            elapsed_s=self.elapsed(),
            warnings=self.warnings,
            interrupted=self.interrupted,
        )

    def _settle_bundle(self, finalist: Finalist | None, verdict: Verdict) -> None:
        bundle, near = self.space.out / "bundle", self.space.out / "closest-miss"
        shutil.rmtree(near, ignore_errors=True)
        if verdict.outcome != "met":
            shutil.rmtree(bundle, ignore_errors=True)
        if finalist is None or verdict.outcome == "baseline_best":
            return
        built = self.runner.built_in_full(read_recipe(finalist.trial.recipe))
        name = bundle.name if verdict.outcome == "met" else near.name
        self.publisher.publish(finalist.trial, built, measured_on="test", name=name)
