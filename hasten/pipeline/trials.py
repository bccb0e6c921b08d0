"""Run one recipe at one stage: build it in isolation, compare it with eager, time it, score it.

Takes recipes, gives :class:`Trial` rows; a candidate that fails is a rejected trial
with the reason, never an end of the run. Sessions live in processes of their own, and
nothing is timed before its outputs were compared with the original model's.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from types import TracebackType
from typing import Any

import numpy as np

from hasten.errors import DiskFull
from hasten.measure.duel import Round, speedup
from hasten.measure.host import available_memory_bytes
from hasten.measure.worker import Worker
from hasten.pipeline.arena import Arena, Times, compared
from hasten.pipeline.builds import Builds, Reference
from hasten.pipeline.candidates import baseline_recipe
from hasten.pipeline.jobs import PREFLIGHT_LAYERS, Built, CheckpointFacts
from hasten.pipeline.material import Material, material_of
from hasten.pipeline.prepare import Part, Prepared, parity_batches
from hasten.pipeline.publish import open_candidate
from hasten.pipeline.request import Request
from hasten.pipeline.scoring import check_finite, drop_interval, original_writes
from hasten.pipeline.timing import TIMINGS, Timing
from hasten.pipeline.workspace import Workspace
from hasten.plan.cost import training_bytes
from hasten.records import Figures, HastenError, Interval, Prediction, Recipe, Rejected, Stage, Trial
from hasten.runtimes.parity import judged, judged_as, parity

_SCREEN_ROWS = 300
_FEWEST_ROWS = 50
_QUALITY_SHARE = 0.1


class TrialRunner(AbstractContextManager["TrialRunner"]):
    """Owns the processes of a run. ``close`` (or leaving the context) ends them all."""

    def __init__(self, request: Request, facts: CheckpointFacts, prepared: Prepared, space: Workspace, builder: Worker):
        self.request, self.facts, self.prepared, self.space = request, facts, prepared, space
        self.baseline = baseline_recipe()
        self.arena = Arena(request, prepared, space.log, lambda worker: self._open(worker, self.baseline))
        self.builds = Builds(request, space, builder, self.arena.worker)
        self._material: Material | None = None
        self._parity = parity_batches(prepared, longest=prepared.processor.max_length, seed=request.workload.seed)
        self.short: Reference | None = None
        self.full: Reference | None = None

    # ------------------------------------------------------------------ the baseline

    def measure_baseline(self) -> tuple[Trial, ...]:
        """Build and measure the original at both depths; its outputs are the reference of all candidates."""
        trials = []
        if self.facts.layers:
            started = time.perf_counter()
            self.short = self._reference(layers=PREFLIGHT_LAYERS)
            trials.append(self._baseline_trial("preflight", self.short, started))
        started = time.perf_counter()
        self.full = self._reference(layers=None)
        trials.append(self._baseline_trial("screen", self.full, started))
        return tuple(trials)

    def baseline_row(self) -> Trial:
        """The original's own row, for a verdict without a finalist."""
        assert self.full is not None
        return self._baseline_trial("screen", self.full, time.perf_counter())

    @original_writes()
    def _reference(self, *, layers: int | None) -> Reference:
        eager = self._parity if self.prepared.answers else None  # its own cached steps prove nothing
        built = (self.builds.short if layers else self.builds.whole)(self.baseline, self.prepared, parity=eager)
        with self.arena.worker() as worker:
            opened = open_candidate(worker, self.baseline.to_dict(), built, self.request)
            peak = self.arena.peak_bytes(worker)
            same = list(built.reference or worker.run(self._parity))
            quick = self.arena.quick(worker)
            if layers is None:
                self.arena.affordable = self._affordable_rows(quick.whole)
                self.prepared = self.arena.prepared = self.prepared.within(self.arena.affordable)
            selection = None if layers else self.arena.outputs(worker, self.prepared.selection)
            figures = self._figures(worker, self.baseline, opened, built, times=quick, peak=peak)
        if selection is not None:
            check_finite(selection)
            quality = self._score(selection, self.prepared.selection, reference=selection)
            figures = replace(figures, quality=quality)
        return Reference(built=built, parity=same, selection=selection, figures=figures)

    def _affordable_rows(self, quick: Sequence[float]) -> int:
        """Rows that the original answers in a tenth of the time: quality must not eat the search.

        A run that goes on keeps its rows, or its trials could not be compared.
        """
        for row in self.space.ledger.rows.rows:
            if row.get("type") == "rows":
                return int(row["most"])
        per_row_s, answers = float(np.median(quick)) / 1e3 / self.request.workload.batch, self.prepared.answers
        per_row_s *= 1.0 if answers is None else answers.most / answers.timed  # scored ones may be longer than timed
        most = max(_FEWEST_ROWS, int(_QUALITY_SHARE * self.request.time_s / per_row_s))
        self.space.ledger.append({"type": "rows", "most": most})
        return most

    def _baseline_trial(self, stage: Stage, reference: Reference, started: float) -> Trial:
        elapsed = time.perf_counter() - started
        same, none = Interval(1.0, 1.0, 1.0), Interval(0.0, 0.0, 0.0)
        return replace(
            self._row(self.baseline, stage, elapsed),
            figures=reference.figures,
            baseline=reference.figures,
            speedup=same if stage == "screen" else None,
            quality_drop_pt=none if stage == "screen" else None,
            notes=reference.built.notes,
        )

    # ------------------------------------------------------------------ candidates

    def run(self, recipe: Recipe, stage: Stage, *, needed_bytes: int | None = None) -> Trial:
        """One trial. Only an interruption and a full disk leave it, which say nothing of the candidate."""
        started = time.perf_counter()
        try:
            if needed_bytes is not None and needed_bytes > available_memory_bytes():
                free = available_memory_bytes()
                raise Rejected(
                    "memory",
                    f"about {needed_bytes / 1e9:.1f} GB are needed to build it, {free / 1e9:.1f} GB are free",
                )
            first = self._rehearsal if recipe.passes else self._preflight
            trial = first(recipe) if stage == "preflight" else self._full_or_again(recipe, stage)
        except DiskFull:
            raise
        except HastenError as error:
            at, reason = (error.stage, error.reason) if isinstance(error, Rejected) else ("input", str(error))
            trial = replace(self._row(recipe, stage, 0.0), status="rejected", rejected_at=at, reason=reason)
        return replace(trial, elapsed_s=time.perf_counter() - started)

    def _preflight(self, recipe: Recipe) -> Trial:
        """On a two-layer copy; on the whole model where its family has no adapter to make one."""
        assert self.full is not None
        original = self.short or self.full
        built = (self.builds.short if self.short else self.builds.whole)(recipe, self.prepared)
        with self.arena.worker() as worker:
            opened = open_candidate(worker, recipe.to_dict(), built, self.request)
            peak = self.arena.peak_bytes(worker)
            self._check_parity(worker, recipe, original.parity)
            figures = self._figures(worker, recipe, opened, built, times=self.arena.quick(worker), peak=peak)
        if self.short:
            shutil.rmtree(built.folder, ignore_errors=True)
        trial = self._row(recipe, "preflight", 0.0)
        return replace(trial, figures=figures, baseline=original.figures, notes=built.notes)

    def _rehearsal(self, recipe: Recipe) -> Trial:
        """Latency, size and memory as they will be, and what the training will take."""
        assert self.full is not None
        started = time.perf_counter()
        built = self.builds.rehearsed(recipe, self.prepared, self.material(), self._parity)
        with self.arena.worker() as worker:
            opened = open_candidate(worker, recipe.to_dict(), built, self.request)
            peak = self.arena.peak_bytes(worker)
            self._check_parity(worker, recipe, built.reference or ())
            figures = self._figures(worker, recipe, opened, built, times=self.arena.steady(worker), peak=peak)
        shutil.rmtree(built.folder, ignore_errors=True)
        assert figures.latency_ms is not None
        expected = Prediction(
            latency_ms=figures.latency_ms.p50, build_s=time.perf_counter() - started + built.training_s,
            peak_build_bytes=training_bytes(4 * self.facts.parameters), bytes=built.bytes,
        )  # fmt: skip
        row = self._row(recipe, "preflight", 0.0)
        return replace(row, figures=figures, baseline=self.full.figures, notes=built.notes, prediction=expected)

    def material(self) -> Material:
        """What passes may work with; made when the first one needs it."""
        if self._material is None:
            self._material = material_of(
                self.prepared, labels=self.facts.labels, tokenizer_json=self.facts.tokenizer_json,
                seed=self.request.workload.seed, write=self.arena.answers_of_original,
            )  # fmt: skip
        return self._material

    def _full_or_again(self, recipe: Recipe, stage: Stage) -> Trial:
        """A candidate is not to blame for an opponent that died: that one is opened afresh, once."""
        try:
            return self._full(recipe, stage)
        except Rejected:
            if not self.arena.lost_opponent():
                raise
            return self._full(recipe, stage)

    def _full(self, recipe: Recipe, stage: Stage) -> Trial:
        assert self.full is not None
        assert self.full.selection is not None
        built = self.built_in_full(recipe)
        quick = stage == "screen" and not recipe.passes  # what was trained for minutes gets all rows at once
        part = self.prepared.selection.head(_SCREEN_ROWS) if quick else self.prepared.selection
        rounds: list[Round] = []
        with self.arena.worker() as worker:
            opened = open_candidate(worker, recipe.to_dict(), built, self.request)
            peak = self.arena.peak_bytes(worker)
            self._check_parity(worker, recipe, built.reference or self.full.parity)
            outputs = self.arena.outputs(worker, part, reference=self.full.selection)
            rounds = (
                [self.arena.screen(worker, TIMINGS[stage], usual=self.full.figures.latency_ms)]
                if stage == "screen"
                else []
            )
            figures = self._figures(worker, recipe, opened, built, times=None, peak=peak)
        if stage != "screen":
            rounds = self.duel_rounds(self.baseline, recipe, TIMINGS[stage])
        reference = self.full.selection[: len(outputs)]
        quality = self._score(outputs, part, reference=reference)
        before = replace(self.full.figures, quality=self._score(reference, part, reference=reference))
        return replace(
            self._row(recipe, stage, 0.0),
            figures=self._timed(replace(figures, quality=quality), self.arena.of_side(rounds, "b")),
            baseline=self._timed(before, self.arena.of_side(rounds, "a")),
            speedup=speedup(rounds, seed=self.request.workload.seed),
            quality_drop_pt=drop_interval(self.prepared, part, reference, outputs, labels=self.facts.labels),
            notes=built.notes,
        )  # fmt: skip

    def built_in_full(self, recipe: Recipe) -> Built:
        if not recipe.passes:
            return self.builds.whole(recipe, self.prepared)
        return self.builds.whole(recipe, self.prepared, self.material(), self._parity)

    # ------------------------------------------------------------------ measuring

    def duel_rounds(self, a: Recipe, b: Recipe, timing: Timing) -> list[Round]:
        """``a`` against ``b`` in fresh pairs of processes."""
        usual = self.full.figures.latency_ms if self.full is not None and a.id == self.baseline.id else None
        return self.arena.rounds(lambda w: self._open(w, a), lambda w: self._open(w, b), timing, usual=usual)

    def _open(self, worker: Worker, recipe: Recipe) -> None:
        open_candidate(worker, recipe.to_dict(), self.built_in_full(recipe), self.request)

    def _figures(
        self, worker: Worker, recipe: Recipe, opened: Any, built: Built, *, times: Times | None, peak: int | None
    ) -> Figures:
        found = Figures(
            bytes=built.bytes,
            peak_rss_bytes=peak or worker.stats().peak_rss_bytes,
            load_s=opened.load_s,
            first_call_ms=worker.first_call_ms,
            precision_ran=opened.precision,
            threads=recipe.to_dict()["runtime"].get("threads") or self.request.workload.threads,
        )
        return found if times is None else times.put_into(found)

    def _timed(self, figures: Figures, times: Times) -> Figures:
        """With a duel's times, and the rates that follow from them."""
        per_s, answers = self._per_s(times.whole), self.prepared.answers
        tokens = None if answers is None or per_s is None else per_s * answers.timed
        return replace(times.put_into(figures), throughput_per_s=per_s, tokens_per_s=tokens)

    def _check_parity(self, worker: Worker, recipe: Recipe, wanted: Sequence[np.ndarray[Any, Any]]) -> None:
        task, precision = self.prepared.task, judged_as(recipe.to_dict()["runtime"])
        a, b = (judged(side, self._parity, task=task) for side in (wanted, compared(worker, self._parity)))
        reason = parity(a, b, precision)
        if reason:
            raise Rejected("parity", reason)

    def _score(self, outputs: Any, part: Part, *, reference: Any) -> Any:
        rows = self.prepared.rows_of(part.head(len(outputs)))
        return self.prepared.task.score(outputs, rows, self.facts.labels, reference=reference)

    def _per_s(self, ms: Sequence[float]) -> float | None:
        """Rows per second of one caller; several at once are measured in the final test alone."""
        work = self.request.workload
        return None if work.concurrency > 1 else work.batch * 1e3 * len(ms) / sum(ms)

    # ------------------------------------------------------------------ processes

    def _row(self, recipe: Recipe, stage: Stage, elapsed: float) -> Trial:
        return Trial(
            recipe=recipe.to_dict(), recipe_id=recipe.id, label=recipe.label, stage=stage, status="ok",
            elapsed_s=elapsed,
        )  # fmt: skip

    def close(self) -> None:
        self.builds.close()
        self.arena.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
