"""The final measurement: the pick against the original on rows that nothing has seen.

Takes the trials and the runner, gives a :class:`Verdict`. The test split is used here
and nowhere else. If the pick fails on it, the next best gets its turn, a few at most.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hasten.ledger import Ledger
from hasten.measure.duel import claims_speedup, speedup
from hasten.measure.energy import energy
from hasten.measure.statistics import latency
from hasten.measure.throughput import throughput
from hasten.pipeline.publish import open_candidate
from hasten.pipeline.scoring import drop_interval, flipped_rows
from hasten.pipeline.timing import TIMINGS, Timing, side
from hasten.pipeline.trials import TrialRunner
from hasten.plan.choose import best, checks, closest_miss
from hasten.plan.search import is_tuned_baseline
from hasten.records import Check, Figures, Flip, Interval, Measured, Outcome, Recipe, Trial
from hasten.runtimes import read_recipe

_THROUGHPUT_S = 1.5
_ENERGY_S = 1.5
_TOKENIZED_ROWS = 150
_MOST_FINALISTS = 3


@dataclass(frozen=True, slots=True)
class Finalist:
    """One candidate's final figures beside the baseline's of the same minutes."""

    trial: Trial
    baseline: Figures
    speedup: Interval
    quality_drop: Interval
    p_value: float | None
    flips: tuple[Flip, ...]
    checks: tuple[Check, ...]
    baseline_ms: tuple[float, ...]
    chosen_ms: tuple[float, ...]

    @property
    def passed(self) -> bool:
        return all(check.holds for check in self.checks)

    @property
    def measured(self) -> Measured:
        return Measured(self.trial.recipe, self.trial.recipe_id, self.trial.label, self.trial.figures)


def run_finals(runner: TrialRunner, ledger: Ledger, *, quick: bool) -> Finalist | None:
    """Test the pick; while it fails on the test split, the next best; else the closest miss. Writes final trials.

    ``quick`` (interrupted, or hardly any time): one candidate, a short duel.
    """
    budget = runner.request.budget
    failed: list[Finalist] = []
    for _ in range(1 if quick else _MOST_FINALISTS):
        tried = {f.trial.recipe_id for f in failed}
        pool = [t for t in ledger.rows.trials() if t.recipe_id not in tried and t.recipe_id != runner.baseline.id]
        pick = best(pool, budget) or (None if failed else closest_miss(pool, budget))
        if pick is None:
            break
        finalist = finalize(runner, pick, timing=TIMINGS["screen" if quick else "final"])
        if (pick.recipe_id, "final") not in {(t.recipe_id, t.stage) for t in ledger.rows.trials()}:
            ledger.append_trial(finalist.trial)
        failed.append(finalist)
        if finalist.passed:
            return finalist
    return min(failed, key=lambda f: sum(c.measured is None or not c.holds for c in f.checks), default=None)


def finalize(runner: TrialRunner, pick: Trial, *, timing: Timing) -> Finalist:
    """Duel, test split, throughput, memory and energy of one candidate against the baseline."""
    started = time.perf_counter()
    recipe = read_recipe(pick.recipe)
    rounds = runner.duel_rounds(runner.baseline, recipe, timing)
    base_ms, own_ms = side(rounds, "a_ms"), side(rounds, "b_ms")
    part, labels = runner.prepared.test, runner.facts.labels
    tokenizing = tokenize_times(runner)
    reference, base_figures = _alone(runner, runner.baseline, base_ms, tokenizing, reference=None)
    outputs, figures = _alone(runner, recipe, own_ms, tokenizing, reference=reference)
    gain, drop = speedup(rounds), drop_interval(runner.prepared, part, reference, outputs, labels=labels)
    flips, p_value = flipped_rows(runner.prepared, part, reference, outputs, labels=labels)
    trial = replace(
        pick, stage="final", figures=figures, baseline=base_figures, speedup=gain, quality_drop_pt=drop,
        elapsed_s=time.perf_counter() - started, prediction=None,
    )  # fmt: skip
    made = checks(runner.request.budget, figures=figures, speedup=gain, quality_drop=drop)
    return Finalist(
        trial=trial, baseline=base_figures, speedup=gain, quality_drop=drop, p_value=p_value, flips=flips, checks=made,
        baseline_ms=tuple(base_ms), chosen_ms=tuple(own_ms),
    )  # fmt: skip


def _alone(
    runner: TrialRunner, recipe: Recipe, ms: Sequence[float], tokenizing: Sequence[float], *, reference: Any
) -> tuple[Any, Figures]:
    """Outputs on the test split and the figures that need no opponent."""
    request, prepared, workload = runner.request, runner.prepared, runner.request.workload
    built = runner.built_in_full(recipe)
    with runner.worker() as worker:
        opened = open_candidate(worker, recipe.to_dict(), built, request)
        outputs = runner.outputs(worker, prepared.test)
        stats = worker.stats()
        rows_per_s = throughput(
            worker,
            runner.requests(40),
            concurrency=workload.concurrency,
            seconds=_THROUGHPUT_S,
            batch=workload.batch,
        )
        joules = energy(worker, runner.requests(40), cores_used=len(workload.cores), seconds=_ENERGY_S)
    rows = prepared.rows_of(prepared.test)
    against = outputs if reference is None else reference
    rng = np.random.default_rng(workload.seed)
    ends = np.asarray(ms) + rng.choice(np.asarray(tokenizing), size=len(ms))
    config = recipe.to_dict()["runtime"]
    figures = Figures(
        latency_ms=latency(ms), end_to_end_ms=latency(list(ends)), throughput_per_s=rows_per_s, bytes=built.bytes,
        peak_rss_bytes=stats.peak_rss_bytes, load_s=opened.load_s, first_call_ms=worker.first_call_ms,
        quality=prepared.task.score(outputs, rows, runner.facts.labels, reference=against), energy=joules,
        precision_ran=opened.precision, threads=config.get("threads") or workload.threads,
    )  # fmt: skip
    return outputs, figures


def tokenize_times(runner: TrialRunner) -> list[float]:
    """Milliseconds to tokenize one request, on real rows: what end-to-end adds to the session."""
    rows = runner.prepared.rows_of(runner.prepared.test.head(_TOKENIZED_ROWS))
    batch, times = runner.request.workload.batch, []
    for start in range(0, len(rows), batch):
        before = time.perf_counter()
        for text in rows.texts[start : start + batch]:
            runner.prepared.tokenizer.encode(text)
        times.append((time.perf_counter() - before) * 1e3)
    return times


def tuned_duel(
    runner: TrialRunner, trials: Sequence[Trial], chosen: Finalist | None
) -> tuple[Measured, Interval | None]:
    """The best PyTorch set-up of the same fp32 model, and how much faster the choice is than that."""
    plain = [t for t in trials if t.stage in ("screen", "contest") and t.status == "ok" and is_tuned_baseline(t)]
    top = max(plain, key=lambda t: t.speedup.estimate if t.speedup else 0.0)
    if top.speedup and not claims_speedup(top.speedup):
        top = next(t for t in plain if t.recipe_id == runner.baseline.id)
    measured = Measured(top.recipe, top.recipe_id, top.label, top.figures)
    if chosen is None or top.recipe_id == chosen.trial.recipe_id:
        return measured, Interval(1.0, 1.0, 1.0) if chosen else None
    if top.recipe_id == runner.baseline.id:
        return replace(measured, figures=chosen.baseline), chosen.speedup
    rounds = runner.duel_rounds(read_recipe(top.recipe), read_recipe(chosen.trial.recipe), TIMINGS["contest"])
    times = latency(side(rounds, "a_ms"))
    return replace(measured, figures=replace(top.figures, latency_ms=times)), speedup(rounds)


def outcome_of(chosen: Finalist | None, versus_tuned: Interval | None) -> Outcome:
    """Not met beats all; met needs a claim against the tuned baseline, not only against the given one."""
    if chosen is None or not chosen.passed:
        return "not_met"
    if versus_tuned is None or not claims_speedup(versus_tuned):
        return "baseline_best"
    return "met"
