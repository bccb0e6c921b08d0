"""A checkpoint in every form that the runtimes offer for text that is written.

Takes a checkpoint and names of runtimes and techniques, gives a :class:`hasten.pipeline.stream_sides.Writer` with its
sides: exported, ready to be opened in a worker and to be compared with eager PyTorch, or refused with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from hasten.bundle.answers import Answers
from hasten.errors import DiskFull
from hasten.measure.host import instruction_sets
from hasten.measure.streams import said
from hasten.measure.worker import OpenFacts, Worker
from hasten.measure.writing import FORCED
from hasten.pipeline.jobs import Arrays, Built, CheckpointFacts
from hasten.pipeline.prompts import vocabulary
from hasten.pipeline.step_bytes import Kept, cache_precision
from hasten.pipeline.stream_sides import Side, Writer, writes_nothing
from hasten.plan.space import TECHNIQUES, check_known
from hasten.records import Config, InputError, MissingDependency, ModelRef, Recipe, Rejected, config_to_dict
from hasten.runtimes import ON_REQUEST, RUNTIMES, get_runtime
from hasten.runtimes.generation_facts import GenerationFacts
from hasten.runtimes.generation_spaces import generation_space
from hasten.runtimes.parity import judged_as, parity
from hasten.tasks import get_task
from hasten.tasks.examples import collate
from hasten.tasks.processor import sample

_EXPORT_TIMEOUT_S = 1800.0
_PARITY_ROWS, _PARITY_TOKENS, _PARITY_STEPS = 2, 12, 4
WRITES = ("text-generation", "summarization", "translation")


class Exports:
    """A checkpoint in a process of its own, which exports it; one that died is replaced. Use it as a context manager.

    ``writer`` describes it. Raises InputError for a model that writes no text.
    """

    def __init__(self, ref: ModelRef, *, task: str | None, start: Callable[[], Worker]) -> None:
        self._ref, self._task, self._start = ref, _writing_task(ref, task), start
        self._worker = start()
        try:
            facts: CheckpointFacts = self._call("hasten.pipeline.jobs:checkpoint_facts", ref=ref, task=self._task)
            kept = self._call("hasten.pipeline.step_bytes:kept_by", ref=ref, task=self._task)
        except BaseException:
            self._worker.close()
            raise
        self.writer = _writer(ref, self._task, facts, kept)

    def side(self, config: Config, *, folder: Path, cache: Path, threads: int, cores: tuple[int, ...]) -> Side:
        """The model exported into ``folder``, or the reason why a runtime refuses it."""
        settings = config_to_dict(config)
        asked = _parity_batch(self.writer)
        try:
            built: Built = self._call(
                "hasten.pipeline.jobs:build_artifact", ref=self._ref, task=self._task,
                recipe=Recipe((), config).to_dict(), folder=folder, cache=cache, parity=[asked],
                calibration=[collate([sample(self.writer.processor)], self.writer.facts.input_names)],
            )  # fmt: skip
            reads = self._call("hasten.pipeline.step_bytes:weight_bytes", folder=folder, kind=config.kind)
        except DiskFull:
            raise  # no runtime is to blame for it
        except (Rejected, InputError) as error:
            return Side(config.kind, config.label, settings, reason=said(error))
        except MissingDependency as error:
            return Side(config.kind, config.label, settings, reason=", ".join(str(error).splitlines()))
        return Side(
            config.kind, config.label, settings,
            partial(_open, folder=folder, config=settings, threads=threads, cores=cores), built.bytes, reads,
            cache_precision(settings), partial(_wrong, built=built, asked=asked, task=self._task, settings=settings),
        )  # fmt: skip

    def __enter__(self) -> Exports:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker.__exit__(kind, error, trace)

    def _call(self, function: str, **arguments: Any) -> Any:
        if not self._worker.alive:
            self._worker.close()
            self._worker = self._start()
        return self._worker.call(function, timeout_s=_EXPORT_TIMEOUT_S, **arguments)


def offers(runtimes: Sequence[str] | None, techniques: Sequence[str] | None, *, threads: int) -> list[Config | Side]:
    """The configs to try, and runtimes that have none, with the reason. Without ``techniques`` the first of each
    precision, and no variants of it."""
    check_known("runtime", runtimes, tuple(RUNTIMES))
    check_known("technique", techniques, tuple(TECHNIQUES))
    found: list[Config | Side] = []
    for name in dict.fromkeys(runtimes or [n for n in RUNTIMES if n not in ON_REQUEST]):
        probe = get_runtime(name).probe()
        if not probe.available:
            found.append(Side(name, reason=f"{probe.reason}; {probe.remedy}"))
            continue
        space = generation_space(name, instructions=instruction_sets(), threads=threads)
        wanted = _usual(space) if techniques is None else [c for c in space if _is_one_of(c, techniques)]
        if not space:
            found.append(Side(name, reason=f"{name} does not write text"))
        elif not wanted:
            found.append(Side(name, reason=f"{name} offers none of {', '.join(techniques or ())} here"))
        found += wanted
    return found


def _usual(space: Sequence[Config]) -> list[Config]:
    first: dict[str, Config] = {}
    for config in space:
        said = config_to_dict(config)
        if not (said.get("kv_cache") or said.get("compile") or said.get("threads")):
            first.setdefault(str(said["precision"]), config)
    return list(first.values())


def _is_one_of(config: Config, techniques: Sequence[str]) -> bool:
    return any(TECHNIQUES[name](config_to_dict(config)) for name in techniques)


def _writing_task(ref: ModelRef, asked: str | None) -> str:
    """The task as which the checkpoint writes. Raises InputError when it does not, or not tokens after tokens."""
    from hasten.models.heads import check_head
    from hasten.models.inspect import inspect_checkpoint

    if asked is not None and asked not in WRITES:
        get_task(asked)
        raise InputError(
            f"--task {asked} with --generate", expected=f"one of {', '.join(WRITES)}",
            remedy="leave --task out: it is read from the checkpoint",
        )  # fmt: skip
    files = inspect_checkpoint(ref, task=None)
    if asked is not None or files.gguf:
        return asked or WRITES[0]
    first: InputError | None = None
    for name in WRITES:
        try:
            check_head(files.config, folder=files.folder, head=get_task(name).head, task=name)
        except InputError as error:
            first = first or error
        else:
            return name
    assert first is not None
    raise writes_nothing(first.got.partition(",")[0], f"{first.remedy}; hasten bench times it with --task and --data")


def _writer(ref: ModelRef, task: str, facts: CheckpointFacts, kept: tuple[Kept, ...] | None) -> Writer:
    writing = facts.writing
    answers = Answers(1, 1, writing.ends, writing.start, writing.never, writing.never_first)
    fits = GenerationFacts(writing.encoder, facts.input_names, writing.start, writing.longest, writing.reads)
    return Writer(ref.source, task, facts.processor_files, fits, answers, facts.words, kept)


def _open(worker: Worker, *, folder: Path, config: dict[str, Any], threads: int, cores: tuple[int, ...]) -> OpenFacts:
    return worker.open("hasten.pipeline.jobs:open_artifact", folder=folder, config=config, threads=threads, cores=cores)


def _parity_batch(writer: Writer) -> Arrays:
    """Two short prompts, and ids that are forced after them: what is timed should be the model."""
    known = vocabulary(writer.files, words=writer.words)
    draw = np.random.default_rng(0)
    ids = known[draw.integers(0, len(known), (_PARITY_ROWS, _PARITY_TOKENS))]
    arrays = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    forced = known[draw.integers(0, len(known), (_PARITY_ROWS, _PARITY_STEPS))]
    return {**{name: arrays[name] for name in writer.facts.input_names}, FORCED: forced}


def _wrong(worker: Worker, *, built: Built, asked: Arrays, task: str, settings: dict[str, Any]) -> str | None:
    got = worker.call_with_session("hasten.measure.writing:forced", batches=[asked])
    comparable = get_task(task).comparable
    return parity([comparable(a) for a in built.reference or ()], [comparable(a) for a in got], judged_as(settings))
