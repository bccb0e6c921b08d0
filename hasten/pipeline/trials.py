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

from hasten.measure.duel import Round, speedup
from hasten.measure.host import available_memory_bytes
from hasten.measure.statistics import latency
from hasten.measure.worker import Worker
from hasten.pipeline.builds import Builds, Reference
from hasten.pipeline.candidates import baseline_recipe
from hasten.pipeline.jobs import PREFLIGHT_LAYERS, Arrays, Built, CheckpointFacts
from hasten.pipeline.material import Material, material_of
from hasten.pipeline.prepare import Part, Prepared, parity_batches
from hasten.pipeline.publish import open_candidate
from hasten.pipeline.request import Request
from hasten.pipeline.scoring import check_finite, drop_interval
from hasten.pipeline.timing import QUICK_REQUESTS, TIMINGS, Timing, quick_times, side, timed_duel
from hasten.pipeline.workspace import Workspace
from hasten.plan.cost import training_bytes
from hasten.records import Figures, HastenError, Interval, Prediction, Recipe, Rejected, Stage, Trial
from hasten.runtimes.parity import parity

_SCREEN_ROWS = 300
_FEWEST_ROWS = 50
_QUALITY_SHARE = 0.1


class TrialRunner(AbstractContextManager["TrialRunner"]):
    """Owns the processes of a run. ``close`` (or leaving the context) ends them all."""

    def __init__(self, request: Request, facts: CheckpointFacts, prepared: Prepared, space: Workspace, builder: Worker):
        self.request, self.facts, self.prepared, self.space = request, facts, prepared, space
        self.builds = Builds(request, space, builder, self.worker)
        self._opponent: Worker | None = None
        self._material: Material | None = None
        self._parity = parity_batches(prepared, longest=prepared.tokenizer.max_length, seed=request.workload.seed)
        self.short: Reference | None = None
        self.full: Reference | None = None
        self.baseline = baseline_recipe()

    # ------------------------------------------------------------------ the baseline

    def measure_baseline(self) -> tuple[Trial, ...]:
        """Build and measure the original at both depths; its outputs are the reference of all candidates."""
        trials = []
        if self.facts.can_shorten:
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

    def _reference(self, *, layers: int | None) -> Reference:
        built = (self.builds.short if layers else self.builds.whole)(self.baseline, self.prepared)
        with self.worker() as worker:
            opened = open_candidate(worker, self.baseline.to_dict(), built, self.request)
            same = worker.run(self._parity)
            quick = self._quick(worker)
            if layers is None:
                self.prepared = self.prepared.within(self._affordable_rows(quick))
            selection = None if layers else self.outputs(worker, self.prepared.selection)
            figures = self._figures(worker, self.baseline, opened, built, times=quick)
        if selection is not None:
            check_finite(selection)
            quality = self._score(selection, self.prepared.selection, reference=selection)
            figures = replace(figures, quality=quality)
        return Reference(built=built, parity=same, selection=selection, figures=figures)

    def _affordable_rows(self, quick: Sequence[float]) -> int:
        """Rows that the original answers in a tenth of the time: quality must not eat the search."""
        per_row_s = float(np.median(quick)) / 1e3 / self.request.workload.batch
        return max(_FEWEST_ROWS, int(_QUALITY_SHARE * self.request.time_s / per_row_s))

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
        """One trial. Only an interruption leaves it."""
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
        except HastenError as error:
            at, reason = (error.stage, error.reason) if isinstance(error, Rejected) else ("input", str(error))
            trial = replace(self._row(recipe, stage, 0.0), status="rejected", rejected_at=at, reason=reason)
        return replace(trial, elapsed_s=time.perf_counter() - started)

    def _preflight(self, recipe: Recipe) -> Trial:
        """On a two-layer copy."""
        assert self.short is not None
        built = self.builds.short(recipe, self.prepared)
        with self.worker() as worker:
            opened = open_candidate(worker, recipe.to_dict(), built, self.request)
            self._check_parity(worker, recipe, self.short.parity)
            figures = self._figures(worker, recipe, opened, built, times=self._quick(worker))
        shutil.rmtree(built.folder, ignore_errors=True)
        trial = self._row(recipe, "preflight", 0.0)
        return replace(trial, figures=figures, baseline=self.short.figures, notes=built.notes)

    def _rehearsal(self, recipe: Recipe) -> Trial:
        """Latency, size and memory as they will be, and what the training will take."""
        assert self.full is not None
        started = time.perf_counter()
        built = self.builds.rehearsed(recipe, self.prepared, self.material(), self._parity)
        with self.worker() as worker:
            opened = open_candidate(worker, recipe.to_dict(), built, self.request)
            self._check_parity(worker, recipe, built.reference or ())
            figures = self._figures(worker, recipe, opened, built, times=self._quick(worker))
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
                self.prepared, extra=self.prepared.extra, tokenizer_json=self.facts.tokenizer_json,
                seed=self.request.workload.seed,
            )  # fmt: skip
        return self._material

    def _full_or_again(self, recipe: Recipe, stage: Stage) -> Trial:
        """A candidate is not to blame for an opponent that died: that one is opened afresh, once."""
        try:
            return self._full(recipe, stage)
        except Rejected:
            if self._opponent is None or self._opponent.alive:
                raise
            self._opponent.close()
            self._opponent = None
            return self._full(recipe, stage)

    def _full(self, recipe: Recipe, stage: Stage) -> Trial:
        assert self.full is not None
        assert self.full.selection is not None
        built = self.built_in_full(recipe)
        part = self.prepared.selection.head(_SCREEN_ROWS) if stage == "screen" else self.prepared.selection
        rounds: list[Round] = []
        with self.worker() as worker:
            opened = open_candidate(worker, recipe.to_dict(), built, self.request)
            self._check_parity(worker, recipe, built.reference or self.full.parity)
            outputs = self.outputs(worker, part)
            rounds = [self._duel(self._standing_opponent(), worker, TIMINGS[stage])] if stage == "screen" else []
            figures = self._figures(worker, recipe, opened, built, times=None)
        if stage != "screen":
            rounds = self.duel_rounds(self.baseline, recipe, TIMINGS[stage])
        reference = self.full.selection[: len(outputs)]
        quality = self._score(outputs, part, reference=reference)
        base_ms, own_ms = side(rounds, "a_ms"), side(rounds, "b_ms")
        return replace(
            self._row(recipe, stage, 0.0),
            figures=replace(figures, latency_ms=latency(own_ms), quality=quality, throughput_per_s=self._per_s(own_ms)),
            baseline=replace(
                self.full.figures, latency_ms=latency(base_ms), throughput_per_s=self._per_s(base_ms),
                quality=self._score(reference, part, reference=reference),
            ),
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
        rounds: list[Round] = []
        for _ in range(timing.rounds):
            with self.worker() as first, self.worker() as second:
                open_candidate(first, a.to_dict(), self.built_in_full(a), self.request)
                open_candidate(second, b.to_dict(), self.built_in_full(b), self.request)
                rounds.append(self._duel(first, second, timing, seed=len(rounds)))
        return rounds

    def outputs(self, worker: Worker, part: Part) -> np.ndarray[Any, Any]:
        """The session's outputs [N, C] on a part, at the batch size that is asked for."""
        return np.concatenate(worker.run(self.prepared.batches(part, batch=self.request.workload.batch)))

    def requests(self, count: int, *, seed: int = 0) -> list[Arrays]:
        workload = self.request.workload
        return self.prepared.requests(batch=workload.batch, count=count, seed=workload.seed + seed)

    def _duel(self, a: Worker, b: Worker, timing: Timing, *, seed: int = 0) -> Round:
        return timed_duel(
            a, b, lambda count: self.requests(count, seed=seed), timing, seed=self.request.workload.seed + seed
        )

    def _quick(self, worker: Worker) -> list[float]:
        return quick_times(worker, self.requests(QUICK_REQUESTS))

    def _figures(
        self, worker: Worker, recipe: Recipe, opened: Any, built: Built, *, times: Sequence[float] | None
    ) -> Figures:
        return Figures(
            latency_ms=None if times is None else latency(times),
            bytes=built.bytes,
            peak_rss_bytes=worker.stats().peak_rss_bytes,
            load_s=opened.load_s,
            first_call_ms=worker.first_call_ms,
            precision_ran=opened.precision,
            threads=recipe.to_dict()["runtime"].get("threads") or self.request.workload.threads,
        )

    def _check_parity(self, worker: Worker, recipe: Recipe, wanted: Sequence[np.ndarray[Any, Any]]) -> None:
        precision = str(recipe.to_dict()["runtime"]["precision"])
        reason = parity(wanted, worker.run(self._parity), precision)
        if reason:
            raise Rejected("parity", reason)

    def _score(self, outputs: Any, part: Part, *, reference: Any) -> Any:
        rows = self.prepared.rows_of(part.head(len(outputs)))
        return self.prepared.task.score(outputs, rows, self.facts.labels, reference=reference)

    def _per_s(self, ms: Sequence[float]) -> float | None:
        """Rows per second of one caller; several at once are measured in the final test alone."""
        if self.request.workload.concurrency > 1:
            return None
        return self.request.workload.batch * 1e3 * len(ms) / sum(ms)

    # ------------------------------------------------------------------ processes

    def worker(self) -> Worker:
        workload = self.request.workload
        return Worker.start(cores=workload.cores, threads=workload.threads, log=self.space.log)

    def _standing_opponent(self) -> Worker:
        """The baseline's process that screens are run against; opened once."""
        if self._opponent is None:
            self._opponent = self.worker()
            open_candidate(self._opponent, self.baseline.to_dict(), self.built_in_full(self.baseline), self.request)
        return self._opponent

    def _row(self, recipe: Recipe, stage: Stage, elapsed: float) -> Trial:
        return Trial(
            recipe=recipe.to_dict(),
            recipe_id=recipe.id,
            label=recipe.label,
            stage=stage,
            status="ok",
            elapsed_s=elapsed,
        )

    def close(self) -> None:
        self.builds.close()
        if self._opponent is not None:
            self._opponent.close()
        self._opponent = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
