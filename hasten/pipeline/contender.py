"""One side of a duel: a checkpoint as PyTorch loads it, or a bundle.

Takes a path or hub id, gives what is needed to open it in a worker and to encode rows
for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hasten.bundle.answers import Answers
from hasten.bundle.manifest import FILE_NAME, read_manifest
from hasten.measure.worker import OpenFacts, Worker
from hasten.pipeline.candidates import baseline_recipe
from hasten.pipeline.jobs import Arrays, Built
from hasten.pipeline.prepare import batches_of, processor_of
from hasten.records import InputError, ModelRef, Workload
from hasten.tasks import get_task
from hasten.tasks.examples import Example, collate, unbatched
from hasten.tasks.processor import PROCESSOR_FOLDER, open_processor, sample
from hasten.tasks.rows import Rows
from hasten.tasks.task import Array, Task, reading


@dataclass(frozen=True, slots=True)
class Contender:
    """``built`` is set for a checkpoint (exported as PyTorch fp32 into a scratch folder), ``bundle`` for a bundle.

    ``answers`` say what is written, where text is, and ``workload`` how prompts are put.
    """

    name: str
    label: str
    task: str
    labels: tuple[str, ...]
    input_names: tuple[str, ...]
    processor: Any
    bytes: int
    built: Built | None = None
    bundle: Path | None = None
    answers: Answers | None = None
    workload: Workload = field(default_factory=Workload)

    def open(self, worker: Worker, *, threads: int, cores: tuple[int, ...]) -> OpenFacts:
        """Open it in ``worker``; a bundle is verified while opening."""
        if self.bundle is not None:
            return worker.open("hasten.pipeline.jobs:open_bundle", folder=self.bundle, threads=threads, cores=cores)
        assert self.built is not None
        return worker.open(
            "hasten.pipeline.jobs:open_artifact",
            folder=self.built.folder, config={"kind": "torch"}, threads=threads, cores=cores,
        )  # fmt: skip

    @property
    def reader(self) -> Task:
        """The task, ready to read what is written."""
        return reading(get_task(self.task), self.processor, self.workload)

    def encode(self, rows: Rows) -> list[tuple[Example, ...]]:
        """The examples of every row."""
        return [self.reader.encode(self.processor, item) for item in rows.items()]

    def batches(self, encoded: Sequence[Sequence[Example]], *, batch: int) -> list[Arrays]:
        return batches_of(encoded, self.input_names, batch=batch)

    def outputs(self, encoded: Sequence[Sequence[Example]], made: Sequence[Array]) -> Array:
        """One array a row, of what the session gave for :meth:`batches`."""
        return self.reader.outputs(unbatched(made, [e for row in encoded for e in row]), encoded)


def is_bundle(source: str) -> bool:
    return (Path(source).expanduser() / FILE_NAME).is_file()


def make_contender(ref: ModelRef, *, task: str | None, worker: Worker, scratch: Path) -> Contender:
    """Describe a bundle, or load a checkpoint in ``worker`` and save it into ``scratch`` for its session.

    Raises InputError for a checkpoint without ``task``, and whatever is wrong with either.
    """
    if is_bundle(ref.source):
        return _of_bundle(Path(ref.source).expanduser(), task=task)
    if task is None:
        raise InputError(
            f"{ref.source} is a checkpoint, not a bundle",
            expected="its task",
            remedy="add --task, as in optimize",
        )
    get_task(task)
    facts: Any = worker.call("hasten.pipeline.jobs:checkpoint_facts", ref=ref, task=task)
    processor, answers = processor_of(facts, get_task(task), Workload(), rows=None)
    recipe = baseline_recipe()
    built: Built = worker.call(
        "hasten.pipeline.jobs:build_artifact",
        ref=ref,
        task=task,
        recipe=recipe.to_dict(),
        calibration=[collate([sample(processor)], facts.input_names)],
        folder=scratch / "model",
        cache=scratch / "cache",
    )
    return Contender(
        name=ref.source, label=recipe.label, task=task, labels=facts.labels, input_names=facts.input_names,
        processor=processor, bytes=built.bytes, built=built, answers=answers,
    )  # fmt: skip


def _of_bundle(folder: Path, *, task: str | None) -> Contender:
    manifest = read_manifest(folder)
    if task is not None and task != manifest.task:
        raise InputError(
            f"{folder} is a bundle for {manifest.task}",
            expected=f"--task {manifest.task}",
            remedy="leave --task out",
        )
    files = {path.name: path.read_bytes() for path in (folder / PROCESSOR_FOLDER).iterdir()}
    return Contender(
        name=str(folder), label=manifest.recipe_label, task=manifest.task, labels=manifest.labels,
        input_names=manifest.input_names, processor=open_processor(files, max_length=manifest.max_length),
        bytes=sum(entry.bytes for name, entry in manifest.files.items() if name.startswith("model/")), bundle=folder,
        answers=manifest.answers, workload=manifest.workload,
    )  # fmt: skip
