"""Put a candidate that passed on disk as ``out/bundle``, and prove that it opens again.

Takes the built candidate, its trial and the prepared data, gives the manifest. The
bundle is opened in a fresh process, with hashes and golden outputs checked, before it
replaces the one that stood there.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hasten.bundle.golden import STEPS, Golden, make_golden
from hasten.bundle.manifest import Manifest, Measurement
from hasten.bundle.write import write_bundle
from hasten.errors import DiskFull
from hasten.measure.worker import Worker
from hasten.measure.writing import FORCED
from hasten.pipeline.arena import compared
from hasten.pipeline.jobs import Built, CheckpointFacts
from hasten.pipeline.prepare import GOLDEN_ROWS, Prepared
from hasten.pipeline.request import Request
from hasten.records import Host, Rejected, Trial
from hasten.tasks.examples import collate

# The same file on the same kind of CPU repeats to the last bits; other thread counts and newer
# libraries reorder sums. Int8 rounding may then flip a step, which moves an output by a per cent or so.
_GOLDEN_TOLERANCE = {"fp32": 1e-3, "bf16": 2e-2}
_GOLDEN_TOLERANCE_INT8 = 5e-2
_GOLDEN_SOUNDS = 2  # a megabyte each


@dataclass(frozen=True, slots=True)
class Publisher:
    """Writes bundles of one run."""

    request: Request
    facts: CheckpointFacts
    prepared: Prepared
    host: Host
    log: Path

    def publish(self, trial: Trial, built: Built, *, measured_on: str, name: str = "bundle") -> Manifest:
        """Write, reopen, verify, swap in; raises Rejected when the written bundle does not verify, and OSError or
        DiskFull when there is no room for it."""
        target = self.request.out / name
        trying = self.request.out / "work" / "bundle-trying"
        shutil.rmtree(trying, ignore_errors=True)
        workload = self.request.workload
        with Worker.start(cores=workload.cores, threads=workload.threads, log=self.log) as worker:
            manifest = write_bundle(
                trying,
                model_folder=built.folder,
                processor_files=self.facts.processor_files,
                golden=self._golden(worker, trial, built),
                manifest=self._manifest(trial, built, measured_on=measured_on),
            )
        self._verify(trying)
        _move_in(trying, target)
        return manifest

    def _golden(self, worker: Worker, trial: Trial, built: Built) -> Golden:
        """Rows of the final test, and what the candidate answers to each: where it writes text, with its first tokens
        and what it says around each of them."""
        part = self.prepared.test.head(GOLDEN_ROWS if self.prepared.rows.sounds is None else _GOLDEN_SOUNDS)
        batches = [collate(row, self.prepared.input_names) for row in part.encoded]
        open_candidate(worker, trial.recipe, built, self.request)
        answers = self.prepared.answers
        if answers is not None:
            asked = replace(answers.scored, new_tokens=min(STEPS, answers.most), ignore_ends=True)
            written = worker.run(batches, generation=asked)
            batches = [{**batch, FORCED: ids} for batch, ids in zip(batches, written, strict=True)]
        outputs = [self.prepared.task.comparable(made) for made in compared(worker, batches)]
        return make_golden(self.prepared.rows_of(part), batches=batches, outputs=outputs)

    def _manifest(self, trial: Trial, built: Built, *, measured_on: str) -> Manifest:
        precision = trial.figures.precision_ran or "unknown"
        workload = replace(self.request.workload, max_length=self.prepared.processor.max_length)
        return Manifest(
            task=self.request.task,
            labels=self.facts.labels,
            family=self.facts.family,
            source=self.request.model.source,
            source_hash=self.facts.source_hash,
            license=self.facts.license,
            recipe=trial.recipe,
            recipe_id=trial.recipe_id,
            recipe_label=trial.label,
            input_names=built.input_names,
            max_length=self.prepared.processor.max_length,
            workload=workload,
            instructions=built.instructions,
            precision_ran=precision,
            host=self.host,
            measured=Measurement(trial.figures, trial.baseline, trial.speedup, trial.quality_drop_pt, measured_on),
            golden_tolerance=_GOLDEN_TOLERANCE.get(precision, _GOLDEN_TOLERANCE_INT8),
            answers=self.prepared.answers,
        )

    def _verify(self, folder: Path) -> None:
        workload = self.request.workload
        with Worker.start(cores=workload.cores, threads=workload.threads, log=self.log) as worker:
            try:
                worker.open("hasten.pipeline.jobs:open_bundle", folder=folder, threads=None, cores=workload.cores)
            except DiskFull:
                raise
            except Exception as error:
                raise Rejected("bundle", f"the written bundle does not open again: {error}") from error


def open_candidate(worker: Worker, recipe: Any, built: Built, request: Request) -> Any:
    """Open a built candidate in ``worker`` with the threads its recipe asks for."""
    config = recipe["runtime"]
    threads = config.get("threads") or request.workload.threads
    return worker.open(
        "hasten.pipeline.jobs:open_artifact",
        folder=built.folder,
        config=config,
        threads=threads,
        cores=request.workload.cores[:threads],
    )


def _move_in(trying: Path, target: Path) -> None:
    from hasten.bundle.write import swap_in

    swap_in(trying, target)
    shutil.rmtree(trying, ignore_errors=True)
