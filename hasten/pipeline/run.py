"""The offline loop: plan, try, keep the best on disk, and end with a verdict.

Takes a checkpoint, rows and a budget, gives a :class:`Result`. The loop is driven by the
ledger alone: a killed run continues where it stopped when the same command is given again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from hasten.measure.host import busy_host, describe_host
from hasten.measure.worker import Worker
from hasten.models.inspect import inspect_checkpoint
from hasten.pipeline.candidates import candidate_recipes
from hasten.pipeline.compression import Compression, may_train
from hasten.pipeline.disk import needed_bytes, watched_disk
from hasten.pipeline.ending import Ending
from hasten.pipeline.interruption import interruptible
from hasten.pipeline.jobs import PREFLIGHT_LAYERS, CheckpointFacts
from hasten.pipeline.prepare import Prepared, prepare, read_data
from hasten.pipeline.progress import Reporter, Silent, trial_line
from hasten.pipeline.publish import Publisher
from hasten.pipeline.request import Request, command_line, make_request
from hasten.pipeline.result import Result, open_result, write_report
from hasten.pipeline.sources import check_unchanged, hash_of_teachers, sources_of
from hasten.pipeline.trials import TrialRunner
from hasten.pipeline.unit_costs import measure_costs
from hasten.pipeline.workspace import Workspace, check_disk, check_folder, open_workspace
from hasten.plan.choose import best, passes
from hasten.plan.cost import predict
from hasten.plan.search import Clock, Finish, Run, Skip, next_action, only, without_old_skips
from hasten.records import Columns, Recipe, Rejected, Stage, Trial
from hasten.report.verdict_json import FILE_NAME as VERDICT_FILE
from hasten.report.verdict_json import read_verdict
from hasten.runtimes import read_recipe
from hasten.tasks import get_task

_FINAL = "final test on rows that nothing has seen"


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
    are those of the command line: runtimes, techniques (tuples of names), recipe (a file, its content or a Recipe: then
    nothing is searched), extra_data (a file or any iterable of texts), threads, cores, batch, concurrency, max_length,
    max_rows, new_tokens, prompt_tokens, chat, prefix, seed, revision, allow_pickle, trust_remote_code, keep_work,
    overwrite.

    Raises InputError for bad input, with nothing written, and DiskFull when there is no room (the same call goes on
    later). Ctrl-C finalises with what is known.
    """
    request = make_request(
        model, task=task, data=data, budget=budget, time=time, out=out,
        columns=Columns(text_column, text_pair_column, label_column),
        splits=(calibration_data, selection_data, test_data), **options,
    )  # fmt: skip
    return run_request(request, reporter or Silent())


def run_request(request: Request, say: Reporter) -> Result:
    """Check, prepare and run one request; the folder is touched only after the input was found good."""
    started = time.monotonic()
    busy = busy_host()
    say.stage("looking at the checkpoint and the data", done=0, total=1, left_s=request.time_s)
    check_folder(request.out)
    files = inspect_checkpoint(request.model, task=get_task(request.task))
    recipes = candidate_recipes(request)
    taught_by = hash_of_teachers(recipes, task=request.task)
    check_disk(request.out, weights_bytes=files.weights_bytes, trains=may_train(request))
    workload, read = request.workload, read_data(request)
    with Worker.start(cores=workload.cores, threads=workload.threads) as builder:
        facts = builder.call("hasten.pipeline.jobs:checkpoint_facts", ref=request.model, task=request.task)
        prepared = prepare(request, facts, read=read)
        prepared = replace(prepared, warnings=(*prepared.warnings, *busy))
        for warning in prepared.warnings:
            say.line(f"warning: {warning}")
        say.line(_plan(request, prepared, len(recipes)))
        sources = sources_of(facts, prepared, teachers_sha256=taught_by)
        header = {"command": command_line(request), "workload": workload, **sources}
        in_fp32 = max(files.weights_bytes, 4 * facts.parameters)  # a checkpoint may hold them in fewer bits
        check_disk(request.out, weights_bytes=in_fp32, trains=may_train(request))
        needed = needed_bytes(weights_bytes=in_fp32, trains=may_train(request))
        with open_workspace(request, header=header, needed=needed) as space:
            check_unchanged(space.ledger.rows.header, sources, out=request.out)
            with TrialRunner(request, facts, prepared, space, builder) as runner:
                _Loop(request, facts, prepared, space, runner, recipes, say, started).run()
    result = open_result(request.out)
    with watched_disk(request.out):
        write_report(result)
    return result


@dataclass(slots=True)
class _Loop:
    """One sitting of a run; everything it decides on is in the ledger."""

    request: Request
    facts: CheckpointFacts
    prepared: Prepared
    space: Workspace
    runner: TrialRunner
    recipes: tuple[Recipe, ...]
    say: Reporter
    started: float
    published: tuple[str, str] | None = None
    before_rows: int = 0
    before_s: float = 0.0
    remarks: tuple[str, ...] = ()

    def run(self) -> None:
        """Baseline, search, final test, verdict."""
        earlier = self.space.ledger.trials()
        self.before_rows, self.before_s = len(earlier), self.space.ledger.rows.elapsed_s()
        if self._verdict_stands():
            self.say.line("this run has ended and its time is used up: its verdict stands (more --time goes on)")
            return
        if earlier:
            self.say.line(f"continuing: {len(earlier)} trials of this run are already done")
        self.runner.builds.tell = self._tell
        self.runner.builds.left_s = lambda: self._clock().left_s
        interrupted = interruptible(self._search)
        if interrupted and self.runner.full is None:
            raise KeyboardInterrupt  # nothing was measured yet: there is nothing to finalise
        if interrupted or interruptible(partial(self._end, interrupted=False)):
            self.say.line("interrupted: finalising with what is known (Ctrl-C once more ends at once)")
            self.runner.close()
            self._end(interrupted=True)

    def _end(self, *, interrupted: bool) -> None:
        self.say.stage(_FINAL, done=1, total=1, left_s=None)
        self.say.line(_FINAL)
        publisher = self._publisher()
        Ending(self.runner, self.space, publisher, publisher.host, interrupted, self._elapsed, self.remarks).run()

    def _verdict_stands(self) -> bool:
        """The verdict on disk answers the same budget, and nothing is left that the time would allow to try."""
        path = self.space.out / VERDICT_FILE
        if not path.is_file() or not any(t.stage == "final" for t in self._trials()):
            return False
        found = read_verdict(path)
        if found.budget != self.request.budget or found.interrupted:
            return False
        trials = list(self._trials())
        while isinstance(step := self._next(trials), tuple):
            recipe, action = step
            if not isinstance(action, Skip):
                return False
            trials.append(action.row(recipe))
        return True

    # ------------------------------------------------------------------ search

    def _search(self) -> None:
        """Try candidates until the plan says that it is enough."""
        self.say.stage("measuring the original model", done=0, total=1, left_s=self.request.time_s)
        for trial in self.runner.measure_baseline():
            self._record(trial)
        self._settle_epochs()
        if reason := self._compression().why_not():
            self.say.line(f"no smaller shapes are tried: {reason}")
        self.remarks = self._compression().remarks()
        while isinstance(step := self._next(self._trials()), tuple):
            recipe, action = step
            if isinstance(action, Skip):
                self._record(action.row(recipe))
                continue
            self._show(recipe, action.stage)
            needed = self._needed_bytes(recipe) if action.stage == "screen" else None
            self._record(self._predicted(self.runner.run(recipe, action.stage, needed_bytes=needed)))
            self._keep_best()
        self.say.line(f"search ends: {step.reason}")

    def _next(self, trials: Sequence[Trial]) -> tuple[Recipe, Run | Skip] | Finish:
        """What to do with which recipe. Smaller shapes join once the runtimes and numbers are known."""
        recipes, clock = {r.id: r for r in self.recipes}, self._clock()
        asked = only(trials, self.recipes[0]) if self.request.recipe is not None else None
        action = asked or next_action(trials, self.recipes, clock, budget=self.request.budget)
        if isinstance(action, Finish) or (isinstance(action, Run) and action.stage == "contest"):
            recipes |= {r.id: r for r in self._compression().recipes(trials)}
            action = next_action(trials, tuple(recipes.values()), clock, budget=self.request.budget)
        return action if isinstance(action, Finish) else (recipes[action.recipe_id], action)

    def _compression(self) -> Compression:
        """Rows to learn from and the original's pace decide how much can be trained."""
        row = next(t for t in self._trials() if t.recipe_id == self.runner.baseline.id and t.stage == "screen")
        assert row.figures.latency_ms is not None
        # Learning reads a row once; what writing its answer takes says nothing of that.
        per_row_ms = (row.figures.ttft_ms or row.figures.latency_ms).p50 / self.request.workload.batch
        rows = len(self.prepared.calibration) + len(self.prepared.extra)
        settled = next((r["most"] for r in self.space.ledger.rows.rows if r.get("type") == "epochs"), None)
        return Compression(self.request, self.facts, rows, per_row_ms, partial(measure_costs, self.runner), settled)

    def _settle_epochs(self) -> None:
        """How long shapes are trained is decided once a run."""
        found = self._compression()
        if found.settled is None and found.epochs() > 0:
            self.space.ledger.append({"type": "epochs", "most": found.epochs()})

    def _keep_best(self) -> None:
        """Put the best that passes into ``out/bundle`` when it is not there yet."""
        top = best(self._trials(), self.request.budget)
        if top is None or top.speedup is None or self.published == (top.recipe_id, top.stage):
            return
        if top.speedup.estimate <= 1.0 and passes(self.runner.baseline_row(), self.request.budget):
            return  # slower than an original that would do
        try:
            built = self.runner.built_in_full(read_recipe(top.recipe))
            self._publisher().publish(top, built, measured_on="selection")
        except Rejected as error:
            self._record(replace(top, status="rejected", rejected_at=error.stage, reason=error.reason, elapsed_s=0.0))
            return
        self.published = (top.recipe_id, top.stage)
        self.say.line(f"          kept as {self.request.out / 'bundle'}: {top.label}, {top.speedup.estimate:.1f}x")

    def _predicted(self, trial: Trial) -> Trial:
        """A preflight row carries what is expected of the full model."""
        if trial.stage != "preflight" or trial.status != "ok" or trial.prediction is not None:
            return trial
        ratio = max(1.0, self.facts.layers / PREFLIGHT_LAYERS)
        prediction = predict(trial, self._trials(), weights_bytes=4 * self.facts.parameters, depth_ratio=ratio)
        return replace(trial, prediction=prediction)

    def _needed_bytes(self, recipe: Recipe) -> int | None:
        found = [t.prediction for t in self._trials() if t.recipe_id == recipe.id and t.prediction]
        return found[-1].peak_build_bytes if found else None

    # ------------------------------------------------------------------ small things

    def _publisher(self) -> Publisher:
        workload = self.request.workload
        host = describe_host(cores=workload.cores, threads=workload.threads)
        return Publisher(self.request, self.facts, self.prepared, host, self.space.log)

    def _trials(self) -> tuple[Trial, ...]:
        return without_old_skips(self.space.ledger.trials(), before=self.before_rows)

    def _record(self, trial: Trial) -> None:
        """Into the ledger, unless a resumed run only measured the baseline again for its outputs."""
        known = {(t.recipe_id, t.stage) for t in self._trials() if t.status == "ok"}
        if trial.status == "rejected" or (trial.recipe_id, trial.stage) not in known:
            self.space.ledger.append_trial(trial)
            self.space.ledger.append_clock(self._elapsed())
            self.say.line(trial_line(trial))

    def _elapsed(self) -> float:
        return self.before_s + time.monotonic() - self.started

    def _clock(self) -> Clock:
        """The final test takes about two contests: it is never squeezed out by the search. Nor are the screens of a
        trained shape's steps: its passes, and its runtime in fp32."""
        tried = [t for t in self._trials() if t.stage in ("screen", "contest") and t.status == "ok"]
        long = [t.elapsed_s for t in tried if not t.recipe["passes"]]
        steps = max((len(t.recipe["passes"]) for t in tried), default=0)
        final_s = min(2.0 * max(long, default=15.0) + 10.0 * (1 + steps + (steps > 0)), 0.4 * self.request.time_s)
        return Clock(elapsed_s=self._elapsed(), limit_s=self.request.time_s, final_s=final_s)

    def _tell(self, text: str) -> None:
        """What a long pass says of itself, beside the run's own clock."""
        clock = self._clock()
        left = max(0.0, clock.limit_s - clock.elapsed_s)
        self.say.stage(text, done=clock.elapsed_s, total=clock.limit_s, left_s=left)

    def _show(self, recipe: Recipe, stage: Stage) -> None:
        clock = self._clock()
        done = len({t.recipe_id for t in self._trials() if t.stage == stage and t.recipe_id != self.runner.baseline.id})
        left = max(0.0, clock.limit_s - clock.elapsed_s)
        of = f" of {len(self.recipes)}" if stage == "preflight" else ""
        self.say.stage(
            f"{stage} {done + 1}{of}: {recipe.label}", done=clock.elapsed_s, total=clock.limit_s, left_s=left
        )


def _plan(request: Request, prepared: Prepared, candidates: int) -> str:
    """What is about to happen, in one line."""
    rows = f"{len(prepared.calibration)} calibration, {len(prepared.selection)} selection, {len(prepared.test)} test"
    cores = ", ".join(map(str, request.workload.cores))
    return f"{candidates} candidates, {request.time_s:.0f} s, cores {cores}; rows: {rows}; measuring the original first"
