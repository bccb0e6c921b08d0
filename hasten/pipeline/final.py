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

from hasten.bundle.answers import measured
from hasten.ledger import Ledger
from hasten.measure.duel import claims_speedup, speedup
from hasten.measure.energy import energy
from hasten.measure.statistics import latency
from hasten.measure.throughput import loop_s, throughput
from hasten.pipeline.arena import Times
from hasten.pipeline.publish import open_candidate
from hasten.pipeline.scoring import drop_interval, flipped_rows
from hasten.pipeline.timing import TIMINGS, Timing, side
from hasten.pipeline.trials import TrialRunner
from hasten.plan.choose import best, checks, closest_miss, gain, is_tuned_baseline, worst_miss
from hasten.records import Check, Figures, Flip, Interval, Measured, Outcome, Recipe, Rejected, Trial
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


def run_finals(
    runner: TrialRunner, ledger: Ledger, *, quick: bool, without: frozenset[str] = frozenset()
) -> Finalist | None:
    """Test the pick; while it fails on the test split, the next best; else the closest miss. Writes final trials.

    ``quick`` (interrupted, or hardly any time): one candidate, a short duel. ``without``: recipes that are out.
    A candidate that breaks in its final is a rejected trial, and the next one's turn.
    """
    budget = runner.request.budget
    failed: list[Finalist] = []
    tried = {*without, runner.baseline.id}
    while len(failed) < (1 if quick else _MOST_FINALISTS):
        pool = [t for t in ledger.trials() if t.recipe_id not in tried]
        pick = best(pool, budget) or (None if failed else closest_miss(pool, budget))
        if pick is None:
            break
        tried.add(pick.recipe_id)
        try:
            finalist = finalize(runner, pick, timing=TIMINGS["screen" if quick else "final"])
        except Rejected as error:
            ledger.append_trial(broken(pick, error))
            continue
        ledger.append_trial(finalist.trial)
        failed.append(finalist)
        if finalist.passed:
            return finalist
    return min(failed, key=lambda f: worst_miss(f.checks), default=None)


def broken(pick: Trial, error: Rejected) -> Trial:
    """The final trial of a candidate that held until then."""
    return replace(pick, stage="final", status="rejected", rejected_at=error.stage, reason=error.reason, elapsed_s=0.0)


def finalize(runner: TrialRunner, pick: Trial, *, timing: Timing) -> Finalist:
    """Duel, test split, throughput, memory and energy of one candidate against the baseline."""
    started = time.perf_counter()
    recipe = read_recipe(pick.recipe)
    rounds = runner.duel_rounds(runner.baseline, recipe, timing)
    base_ms, own_ms = side(rounds, "a_ms"), side(rounds, "b_ms")
    part, labels = runner.prepared.test, runner.facts.labels
    tokenizing = tokenize_times(runner)
    theirs, ours = (runner.arena.of_side(rounds, name) for name in ("a", "b"))
    reference, base_figures = _alone(runner, runner.baseline, theirs, tokenizing, reference=None)
    outputs, figures = _alone(runner, recipe, ours, tokenizing, reference=reference)
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
    runner: TrialRunner, recipe: Recipe, times: Times, tokenizing: Sequence[float], *, reference: Any
) -> tuple[Any, Figures]:
    """Outputs on the test split and the figures that need no opponent."""
    request, prepared, workload = runner.request, runner.prepared, runner.request.workload
    built, answers = runner.built_in_full(recipe), prepared.answers
    with runner.arena.worker() as worker:
        opened = open_candidate(worker, recipe.to_dict(), built, request)
        peak = runner.arena.peak_bytes(worker)
        outputs = runner.arena.outputs(worker, prepared.test, reference=reference)
        peak = peak or worker.stats().peak_rss_bytes
        rows_per_s = throughput(
            worker,
            runner.arena.requests(40),
            concurrency=workload.concurrency,
            seconds=loop_s(times.whole, least_s=_THROUGHPUT_S),
            batch=workload.batch,
            generation=measured(answers),
        )
        joules = energy(
            worker, runner.arena.requests(40), cores_used=len(workload.cores), seconds=_ENERGY_S,
            generation=measured(answers),
        )  # fmt: skip
    rows = prepared.rows_of(prepared.test)
    against = outputs if reference is None else reference
    rng = np.random.default_rng(workload.seed)
    ends = np.asarray(times.whole) + rng.choice(np.asarray(tokenizing), size=len(times.whole))
    config = recipe.to_dict()["runtime"]
    figures = Figures(
        end_to_end_ms=latency(list(ends)), throughput_per_s=rows_per_s, bytes=built.bytes,
        peak_rss_bytes=peak, load_s=opened.load_s, first_call_ms=worker.first_call_ms,
        quality=prepared.task.score(outputs, rows, runner.facts.labels, reference=against), energy=joules,
        precision_ran=opened.precision, threads=config.get("threads") or workload.threads,
        tokens_per_s=None if answers is None else rows_per_s * answers.timed,
    )  # fmt: skip
    return outputs, times.put_into(figures)


def tokenize_times(runner: TrialRunner) -> list[float]:
    """Milliseconds to tokenize one request, on real rows: what end-to-end adds to the session."""
    items = runner.prepared.rows_of(runner.prepared.test.head(_TOKENIZED_ROWS)).items()
    batch, times = runner.request.workload.batch, []
    for start in range(0, len(items), batch):
        before = time.perf_counter()
        for item in items[start : start + batch]:
            runner.prepared.task.encode(runner.prepared.processor, item)
        times.append((time.perf_counter() - before) * 1e3)
    return times


@dataclass(frozen=True, slots=True)
class Tuned:
    """The best PyTorch set-up of the same fp32 model; ``passes``: would it meet the budget by itself?

    ``speedup`` is the choice's against it, ``None`` without a choice.
    """

    measured: Measured
    speedup: Interval | None
    passes: bool


def tuned_duel(runner: TrialRunner, trials: Sequence[Trial], chosen: Finalist | None) -> Tuned:
    """The choice against the baseline set up as well as PyTorch allows, on the rows of the final test."""
    top = _best_plain(runner, trials)
    measured = Measured(top.recipe, top.recipe_id, top.label, top.figures)
    if chosen is None:
        same = top.speedup or Interval(1.0, 1.0, 1.0)
        return Tuned(measured, None, passes=_holds(runner, top.figures, same))
    if top.recipe_id != runner.baseline.id:
        try:
            return _against_tuned(runner, top, chosen)
        except Rejected:  # it held in the search and does not now: the untuned form stands for it
            top = runner.baseline_row()
            measured = Measured(top.recipe, top.recipe_id, top.label, top.figures)
    own = replace(measured, figures=chosen.baseline)
    return Tuned(own, chosen.speedup, passes=_holds(runner, chosen.baseline, Interval(1.0, 1.0, 1.0)))


def _best_plain(runner: TrialRunner, trials: Sequence[Trial]) -> Trial:
    """The fastest set-up of the original by its longest look, if that claims to be faster than the given one."""
    found = {t.recipe_id: t for t in trials if t.stage == "screen" and t.status == "ok" and is_tuned_baseline(t)}
    found |= {t.recipe_id: t for t in trials if t.stage == "contest" and t.status == "ok" and is_tuned_baseline(t)}
    top = max(found.values(), key=gain, default=runner.baseline_row())
    return top if top.speedup and claims_speedup(top.speedup) else runner.baseline_row()


def _against_tuned(runner: TrialRunner, top: Trial, chosen: Finalist) -> Tuned:
    recipe = read_recipe(top.recipe)
    rounds = runner.duel_rounds(recipe, read_recipe(chosen.trial.recipe), TIMINGS["contest"])
    _, figures = _alone(runner, recipe, runner.arena.of_side(rounds, "a"), tokenize_times(runner), reference=None)
    versus = speedup(rounds)
    of_tuned = chosen.speedup.estimate / versus.estimate
    passes = _holds(runner, figures, Interval(of_tuned, of_tuned, of_tuned))
    return Tuned(Measured(top.recipe, top.recipe_id, top.label, figures), versus, passes)


def _holds(runner: TrialRunner, figures: Figures, own_speedup: Interval) -> bool:
    """Does the original, in this set-up, meet every bound? It loses no quality against itself."""
    none = Interval(0.0, 0.0, 0.0)
    return all(c.holds for c in checks(runner.request.budget, figures=figures, speedup=own_speedup, quality_drop=none))


def outcome_of(chosen: Finalist | None, tuned: Tuned) -> Outcome:
    """Not met beats all. Where the baseline would do as well, met needs a claim against it at its best."""
    if chosen is None:
        return "baseline_best" if tuned.passes else "not_met"
    if not chosen.passed:
        return "not_met"
    if tuned.passes and (tuned.speedup is None or not claims_speedup(tuned.speedup)):
        return "baseline_best"
    return "met"
