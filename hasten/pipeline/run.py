"""The offline loop: plan, try, keep the best on disk, and end with a verdict.

Takes a checkpoint, rows and a budget, gives a :class:`Result`. The loop is driven by the
ledger alone: a killed run continues where it stopped when the same command is given again.
"""

from __future__ import annotations

import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hasten.measure.host import describe_host, instruction_sets
from hasten.measure.worker import Worker
from hasten.models.inspect import inspect_checkpoint
from hasten.pipeline.final import Finalist, outcome_of, run_finals, tuned_duel
from hasten.pipeline.jobs import PREFLIGHT_LAYERS, CheckpointFacts
from hasten.pipeline.prepare import Prepared, prepare
from hasten.pipeline.progress import Reporter, Silent
from hasten.pipeline.publish import Publisher
from hasten.pipeline.request import Request, make_request
from hasten.pipeline.result import Result, open_result, write_report
from hasten.pipeline.trials import TrialRunner
from hasten.pipeline.workspace import Workspace, check_disk, open_workspace
from hasten.plan.choose import best
from hasten.plan.cost import predict
from hasten.plan.search import Clock, Finish, Skip, next_action, slow_to_build, without_old_skips
from hasten.plan.sentences import relaxations, verdict_sentence
from hasten.plan.space import recipes as narrow
from hasten.records import Columns, InputError, Measured, Recipe, Rejected, Trial, Verdict
from hasten.report.verdict_json import FILE_NAME as VERDICT_FILE
from hasten.report.verdict_json import write_verdict
from hasten.runtimes import RUNTIMES, get_runtime, read_recipe


def optimize(
    model: str | Path,
    *,
    task: str,
    data: str | Path | None = None,
    budget: str = "",
    time: str | float = "10m",
    out: str | Path = "out",
    calibration_data: str | None = None,
    selection_data: str | None = None,
    test_data: str | None = None,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | None = None,
    reporter: Reporter | None = None,
    **options: Any,
) -> Result:
    """Find the fastest version of ``model`` that meets ``budget`` on ``data``, within ``time``.

    Writes ``out/bundle`` (the artifact, from the first candidate that passes on), ``report.html``,
    ``trials.jsonl`` and ``verdict.json``. Give ``data`` to be split, or three files of your own. ``options``
    are those of the command line: runtimes, techniques (tuples of names), threads, cores, batch,
    concurrency, max_length, max_rows, seed, revision, allow_pickle, trust_remote_code, keep_work, overwrite.

    Raises InputError for bad input, with nothing written. Ctrl-C finalises with what is known.
    """
    request = make_request(
        model,
        task=task,
        data=data,
        budget=budget,
        time=time,
        out=out,
        columns=Columns(text_column, text_pair_column, label_column),
        splits=(calibration_data, selection_data, test_data),
        **options,
    )
    return _optimize(request, reporter or Silent())


def _optimize(request: Request, say: Reporter) -> Result:
    started = time.monotonic()
    say.stage("looking at the checkpoint and the data", done=0, total=1, left_s=request.time_s)
    files = inspect_checkpoint(request.model, task=request.task)
    recipes = candidate_recipes(request)
    check_disk(request.out, weights_bytes=files.weights_bytes)
    with Worker.start(cores=request.workload.cores, threads=request.workload.threads) as builder:
        facts: CheckpointFacts = builder.call(
            "hasten.pipeline.jobs:checkpoint_facts", ref=request.model, task=request.task
        )
        prepared = prepare(request, facts)
        header = {
            "command": command_line(request),
            "workload": request.workload,
            "source_hash": facts.source_hash,
            "data_sha256": prepared.rows.sha256,
        }
        with open_workspace(request, header=header) as space:
            _check_same_sources(space, header)
            with TrialRunner(request, facts, prepared, space, builder) as runner:
                _Loop(request, facts, prepared, space, runner, recipes, say, started).run()
    result = open_result(request.out)
    write_report(result)
    return result


@dataclass
class _Loop:
    """One run's loop; everything it decides on is in the ledger."""

    request: Request
    facts: CheckpointFacts
    prepared: Prepared
    space: Workspace
    runner: TrialRunner
    recipes: tuple[Recipe, ...]
    say: Reporter
    started: float
    stop: threading.Event = field(default_factory=threading.Event)
    published: tuple[str, str] | None = None
    before_rows: int = 0
    before_s: float = 0.0

    def run(self) -> None:
        """Baseline, search, final test, verdict."""
        earlier = self.space.ledger.rows.trials()
        self.before_rows, self.before_s = len(earlier), sum(t.elapsed_s for t in earlier)
        with stopping_on_signals(self.stop):
            interrupted = not self._search()
        self.say.stage("final test", done=1, total=1, left_s=None)
        with stopping_on_signals(threading.Event()):
            self._finish(interrupted=interrupted)

    # ------------------------------------------------------------------ search

    def _search(self) -> bool:
        """Try candidates until the plan says so; False when the user interrupted it."""
        try:
            self.say.stage("measuring the original model", done=0, total=1, left_s=self.request.time_s)
            for trial in self.runner.measure_baseline():
                self._record(trial)
            known = {recipe.id: recipe for recipe in self.recipes}
            while not self.stop.is_set():
                action = next_action(self._trials(), self.recipes, self._clock(), budget=self.request.budget)
                if isinstance(action, Finish):
                    self.say.line(f"search ends: {action.reason}")
                    return True
                if isinstance(action, Skip):
                    self._record(self._skipped(known[action.recipe_id], action))
                    continue
                recipe = known[action.recipe_id]
                self._show(recipe, action.stage)
                needed = self._needed_bytes(recipe) if action.stage == "screen" else None
                self._record(self._predicted(self.runner.run(recipe, action.stage, needed_bytes=needed)))
                self._keep_best()
        except KeyboardInterrupt:
            self.runner.close()
        self.say.line("interrupted: finalising with what is known (once more Ctrl-C ends at once)")
        return False

    def _keep_best(self) -> None:
        """Put the best that passes into ``out/bundle`` when it is not there yet."""
        trials = [t for t in self._trials() if t.recipe_id != self.runner.baseline.id]
        top = best(trials, self.request.budget)
        if top is None or top.stage == "preflight" or self.published == (top.recipe_id, top.stage):
            return
        if top.speedup is None or top.speedup.estimate <= 1.0:
            return
        try:
            self._publisher().publish(top, self.runner.built_in_full(read_recipe(top.recipe)), measured_on="selection")
        except Rejected as error:
            self._record(replace(top, status="rejected", rejected_at=error.stage, reason=error.reason, elapsed_s=0.0))
            return
        self.published = (top.recipe_id, top.stage)
        self.say.line(f"  kept as {self.request.out / 'bundle'}: {top.label}, {top.speedup.estimate:.1f}x")

    def _predicted(self, trial: Trial) -> Trial:
        if trial.stage != "preflight" or trial.status != "ok":
            return trial
        ratio = max(1.0, self.facts.layers / PREFLIGHT_LAYERS)
        return replace(
            trial,
            prediction=predict(trial, self._trials(), weights_bytes=4 * self.facts.parameters, depth_ratio=ratio),
        )

    def _needed_bytes(self, recipe: Recipe) -> int | None:
        found = [t.prediction for t in self._trials() if t.recipe_id == recipe.id and t.prediction]
        return found[-1].peak_build_bytes if found else None

    def _skipped(self, recipe: Recipe, action: Skip) -> Trial:
        return Trial(
            recipe=recipe.to_dict(), recipe_id=recipe.id, label=recipe.label, stage=action.stage, status="rejected",
            elapsed_s=0.0, rejected_at=action.rejected_at, reason=action.reason,
        )  # fmt: skip

    # ------------------------------------------------------------------ the end

    def _finish(self, *, interrupted: bool) -> None:
        finalist = None
        if self.runner.full is not None:
            finalist = run_finals(self.runner, self.space.ledger, quick=interrupted)
        if finalist is None and self.runner.full is None:
            raise KeyboardInterrupt
        tuned, versus_tuned = tuned_duel(self.runner, self._trials(), finalist)
        verdict = self._verdict(finalist, tuned, versus_tuned, interrupted=interrupted)
        self._settle_bundle(finalist, verdict)
        if finalist is not None:
            self.space.ledger.append_samples("baseline", finalist.baseline_ms)
            self.space.ledger.append_samples("chosen", finalist.chosen_ms)
        write_verdict(self.request.out / VERDICT_FILE, verdict)

    def _verdict(self, finalist: Finalist | None, tuned: Measured, versus_tuned: Any, *, interrupted: bool) -> Verdict:
        base_trial = self.runner.baseline_row()
        figures = finalist.baseline if finalist else base_trial.figures
        baseline = Measured(base_trial.recipe, base_trial.recipe_id, base_trial.label, figures)
        outcome = outcome_of(finalist, versus_tuned)
        chosen = finalist.measured if finalist else None
        gain, drop = (finalist.speedup, finalist.quality_drop) if finalist else (None, None)
        made = finalist.checks if finalist else ()
        relaxed = relaxations(self._trials(), self.request.budget, current=finalist.trial if finalist else None)
        sentence = verdict_sentence(
            outcome,
            baseline=baseline,
            tuned=tuned,
            chosen=chosen,
            speedup=gain,
            quality_drop=drop,
            checks=made,
        )
        return Verdict(
            outcome=outcome, sentence=sentence, budget=self.request.budget, task=self.request.task,
            source=self.request.model.source, baseline=baseline, tuned_baseline=tuned, chosen=chosen, speedup=gain,
            speedup_vs_tuned=versus_tuned, quality_drop=drop, quality_p_value=finalist.p_value if finalist else None,
            checks=made, relaxations=relaxed, flips=finalist.flips if finalist else (), splits=self.prepared.splits,
            host=self._host(), elapsed_s=self._elapsed(), warnings=self.prepared.warnings, interrupted=interrupted,
        )  # fmt: skip

    def _settle_bundle(self, finalist: Finalist | None, verdict: Verdict) -> None:
        """``bundle`` holds what passed the final test; a closest miss goes beside it under its own name."""
        bundle, near = self.request.out / "bundle", self.request.out / "closest-miss"
        shutil.rmtree(near, ignore_errors=True)
        if finalist is None or verdict.outcome != "met":
            shutil.rmtree(bundle, ignore_errors=True)
        if finalist is None or verdict.outcome == "baseline_best":
            return
        built = self.runner.built_in_full(read_recipe(finalist.trial.recipe))
        name = bundle.name if verdict.outcome == "met" else near.name
        self._publisher().publish(finalist.trial, built, measured_on="test", name=name)

    # ------------------------------------------------------------------ small things

    def _publisher(self) -> Publisher:
        return Publisher(self.request, self.facts, self.prepared, self._host(), self.space.log)

    def _host(self) -> Any:
        return describe_host(cores=self.request.workload.cores, threads=self.request.workload.threads)

    def _trials(self) -> tuple[Trial, ...]:
        return without_old_skips(self.space.ledger.rows.trials(), before=self.before_rows)

    def _record(self, trial: Trial) -> None:
        done = {(t.recipe_id, t.stage) for t in self._trials() if t.status == "ok"}
        if (trial.recipe_id, trial.stage) not in done or trial.status == "rejected":
            self.space.ledger.append_trial(trial)
            self.say.line(trial_line(trial))

    def _elapsed(self) -> float:
        return self.before_s + time.monotonic() - self.started

    def _clock(self) -> Clock:
        contest = [t.elapsed_s for t in self._trials() if t.stage in ("screen", "contest") and t.status == "ok"]
        final_s = 2.0 * max(contest, default=15.0) + 10.0
        return Clock(
            elapsed_s=self._elapsed(),
            limit_s=self.request.time_s,
            final_s=min(final_s, 0.4 * self.request.time_s),
        )

    def _show(self, recipe: Recipe, stage: str) -> None:
        clock = self._clock()
        done = len({t.recipe_id for t in self._trials() if t.stage == stage})
        text = f"{stage} {done}/{len(self.recipes)}: {recipe.label}"
        left = clock.limit_s - clock.elapsed_s
        self.say.stage(text, done=clock.elapsed_s, total=clock.limit_s, left_s=max(0.0, left))


def candidate_recipes(request: Request) -> tuple[Recipe, ...]:
    """What the available runtimes offer here, narrowed; the baseline itself is not a candidate.

    Raises InputError when the user names a runtime that is not available, with the reason.
    """
    wanted = request.runtimes or tuple(RUNTIMES)
    configs: list[Any] = []
    for name in wanted:
        probe = get_runtime(name).probe()
        if probe.available:
            configs += get_runtime(name).space(instructions=instruction_sets(), threads=request.workload.threads)
        elif request.runtimes:
            raise InputError(f"{name}: {probe.reason}", expected="an available runtime", remedy=str(probe.remedy))
    baseline = get_runtime("torch").space(instructions=frozenset(), threads=1)[0]
    if request.runtimes is None or request.runtimes == ("torch",) or configs:
        offered = narrow(configs, runtimes=wanted, techniques=request.techniques, known_runtimes=tuple(RUNTIMES))
    candidates = [r for r in offered if r.runtime != baseline]
    quick = [r for r in candidates if not slow_to_build(r)]
    return (*_interleaved(quick), *(r for r in candidates if slow_to_build(r)))


def _interleaved(recipes: Sequence[Recipe]) -> Iterator[Recipe]:
    """The best of each runtime first, then the second of each: an early stop has seen them all."""
    by_kind: dict[str, list[Recipe]] = {}
    for recipe in recipes:
        by_kind.setdefault(recipe.runtime.kind, []).append(recipe)
    for number in range(max(map(len, by_kind.values()), default=0)):
        for group in by_kind.values():
            yield from group[number : number + 1]


def command_line(request: Request) -> str:
    """The command that was typed, or the call that stands for it."""
    if Path(sys.argv[0]).name == "hasten":
        return shlex.join(["hasten", *sys.argv[1:]])
    return f"hasten.optimize({request.model.source!r}, task={request.task!r}, budget={request.budget.text!r}, ...)"


def trial_line(trial: Trial) -> str:
    """One line of progress for a finished trial."""
    head = f"{trial.stage:9} {trial.label:44.44}"
    if trial.status == "rejected":
        return f"{head} rejected at {trial.rejected_at}: {trial.reason}"
    p50 = f"p50 {trial.figures.latency_ms.p50:7.2f} ms" if trial.figures.latency_ms else ""
    gain = f"  {trial.speedup.estimate:.2f}x" if trial.speedup else ""
    drop = f"  drop {trial.quality_drop_pt.estimate:+.2f} pt" if trial.quality_drop_pt else ""
    return f"{head} {p50}{gain}{drop}  ({trial.elapsed_s:.0f} s)"


@contextmanager
def stopping_on_signals(stop: threading.Event) -> Iterator[None]:
    """SIGTERM acts like Ctrl-C, so that a stopped job still ends with a verdict."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: Any) -> None:
        del number, frame
        stop.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_same_sources(space: Workspace, header: dict[str, Any]) -> None:
    """The model or the data may have changed under the same names since the run began."""
    found = space.ledger.rows.header
    for key, what in (("source_hash", "the checkpoint"), ("data_sha256", "the data")):
        if found.get(key) != header[key]:
            raise InputError(
                f"{what} changed since the run in {space.out} began",
                expected="the same content, to continue that run",
                remedy="start afresh with --overwrite, or give another --out",
            )
