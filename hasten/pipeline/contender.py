"""One side of a duel: a checkpoint as PyTorch loads it, or a bundle.

Takes a path or hub id, gives what is needed to open it in a worker and to encode rows
for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hasten.bundle.answers import Answers
from hasten.bundle.manifest import FILE_NAME, read_manifest
from hasten.measure.worker import OpenFacts, Worker
from hasten.pipeline.answering import check_workload
from hasten.pipeline.candidates import baseline_recipe
from hasten.pipeline.jobs import Arrays, Built
from hasten.pipeline.prepare import batches_of, processor_of
from hasten.records import Budget, InputError, ModelRef, Workload
from hasten.tasks import get_task
from hasten.tasks.examples import Example, collate, unbatched
from hasten.tasks.processor import files_of, open_processor, sample
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

    def timed(self, encoded: Sequence[tuple[Example, ...]]) -> list[tuple[Example, ...]]:
        """The examples as they are timed: prompts as long as a run's ``--prompt-tokens`` made them."""
        most = self.workload.prompt_tokens
        return list(encoded) if most is None else [tuple(e.cut(most) for e in row) for row in encoded]

    def peak_bytes(self, worker: Worker, encoded: Sequence[tuple[Example, ...]], *, batch: int) -> int | None:
        """Where text is written: peak memory after an answer to the longest prompt, as yet of nothing else."""
        if self.answers is None:
            return None
        longest = max((e for row in self.timed(encoded) for e in row), key=lambda e: e.length)
        worker.run([collate([longest] * batch, self.input_names)], generation=self.answers.measured)
        return worker.stats().peak_rss_bytes

    def outputs(self, encoded: Sequence[Sequence[Example]], made: Sequence[Array]) -> Array:
        """One array a row, of what the session gave for :meth:`batches`."""
        return self.reader.outputs(unbatched(made, [e for row in encoded for e in row]), encoded)


def is_bundle(source: str) -> bool:
    return (Path(source).expanduser() / FILE_NAME).is_file()


def workload_for(refs: Sequence[ModelRef], asked: Workload, *, task: str | None) -> Workload:
    """How a checkpoint among ``refs`` is to read and write: as a bundle that it meets, else as ``asked``.

    Raises InputError where both say something, or ``task`` has no such settings.
    """
    folder = next((Path(ref.source).expanduser() for ref in refs if is_bundle(ref.source)), None)
    if folder is None:
        if asked.new_tokens is not None and asked.new_tokens < 1:
            raise InputError(
                f"--new-tokens {asked.new_tokens}", expected="a whole number of at least 1", remedy="correct the flag"
            )
        if task is not None:
            check_workload(task, asked, Budget((), ""))
        return asked
    if asked != Workload():
        raise InputError(
            "--new-tokens, --chat or --prefix beside a bundle", expected="none of them: a bundle has its own",
            remedy="leave them out",
        )  # fmt: skip
    manifest = read_manifest(folder)
    own = replace(manifest.workload, max_length=manifest.max_length)
    return own if manifest.answers is None else replace(own, new_tokens=manifest.answers.most)


def task_of(refs: Sequence[ModelRef], *, task: str | None) -> Task:
    """What the rows are for, as asked or as a bundle among ``refs`` says. It loads nothing: a wrong path to the rows
    should not wait for two models.

    Raises InputError where neither says it, where both do and differ, and for a task that is unknown.
    """
    for folder in (Path(ref.source).expanduser() for ref in refs if is_bundle(ref.source)):
        said = read_manifest(folder).task
        _check_task(folder, task=task, said=said)
        task = task or said
    if task is None:
        raise _without_task(refs[0])
    return get_task(task)


def asked_alike(sides: list[Contender]) -> list[Contender]:
    """Both put their prompts and write as many tokens as a bundle among them was measured with."""
    like = next((side for side in sides if side.bundle is not None), sides[0])
    if like.answers is None:
        return sides
    most, timed = like.answers.most, like.answers.timed
    return [
        replace(side, workload=like.workload, answers=replace(side.answers, most=most, timed=timed))
        for side in sides
        if side.answers is not None
    ]


def make_contender(
    ref: ModelRef, *, task: str | None, worker: Worker, scratch: Path, workload: Workload | None = None
) -> Contender:
    """Describe a bundle, or load a checkpoint in ``worker`` and save it into ``scratch`` for its session, to read and
    write as ``workload`` says.

    Raises InputError for a checkpoint without ``task``, and whatever is wrong with either.
    """
    if is_bundle(ref.source):
        return _of_bundle(Path(ref.source).expanduser(), task=task)
    if task is None:
        raise _without_task(ref)
    workload = workload or Workload()
    get_task(task)
    facts: Any = worker.call("hasten.pipeline.jobs:checkpoint_facts", ref=ref, task=task)
    processor, answers = processor_of(facts, get_task(task), workload, rows=None)
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
        workload=workload,
    )  # fmt: skip


def _check_task(folder: Path, *, task: str | None, said: str) -> None:
    if task not in (None, said):
        raise InputError(
            f"{folder} is a bundle for {said}", expected=f"one for {task}",
            remedy="leave --task out, and compare models of one task",
        )  # fmt: skip


def _without_task(ref: ModelRef) -> InputError:
    return InputError(
        f"{ref.source} is a checkpoint, not a bundle", expected="its task", remedy="add --task, as in optimize"
    )


def _of_bundle(folder: Path, *, task: str | None) -> Contender:
    manifest = read_manifest(folder)
    _check_task(folder, task=task, said=manifest.task)
    return Contender(
        name=str(folder), label=manifest.recipe_label, task=manifest.task, labels=manifest.labels,
        input_names=manifest.input_names, processor=open_processor(files_of(folder), max_length=manifest.max_length),
        bytes=manifest.model_bytes, bundle=folder, answers=manifest.answers, workload=manifest.workload,
    )  # fmt: skip
