"""A model that writes for several streams, on whatever runs it: what is common to all, and each side.

Takes the facts of a checkpoint or a bundle's folder, gives :class:`Writer` and :class:`Side`. Checkpoints are exported
in :mod:`hasten.pipeline.stream_exports`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hasten.bundle.answers import Answers
from hasten.bundle.manifest import read_manifest, verify_files
from hasten.measure.worker import OpenFacts, Worker
from hasten.pipeline.step_bytes import Kept, cache_precision
from hasten.records import InputError, MissingDependency, Rejected
from hasten.runtimes.generation_facts import GenerationFacts, read_facts
from hasten.tasks.processor import files_of, open_processor

_LONGEST = 1 << 20  # for a tokenizer: nothing is cut here
Open = Callable[[Worker], OpenFacts]


@dataclass(frozen=True, slots=True)
class Side:
    """One runtime's form of the model. ``reason`` says why there is none; then nothing else is set.

    ``reads`` are the bytes of weights that a step reads (``None``: not known), ``cache`` the numbers in which keys and
    values are kept, ``wrong`` compares it with eager PyTorch: a sentence, or ``None``.
    """

    runtime: str
    label: str = ""
    config: dict[str, Any] | None = None
    open: Open | None = None
    bytes: int = 0
    reads: int | None = None
    cache: str = "fp32"
    wrong: Callable[[Worker], str | None] | None = None
    reason: str | None = None

    @property
    def name(self) -> str:
        return f"{self.runtime} {self.label}".strip()


@dataclass(frozen=True, slots=True)
class Writer:
    """The model itself: how it reads and writes, whatever runs it. ``words``: rows of its table of words, ``kept``: by
    each layer of a token; ``None`` where that is not known."""

    name: str
    task: str
    files: dict[str, bytes]
    facts: GenerationFacts
    answers: Answers
    words: int | None
    kept: tuple[Kept, ...] | None

    @property
    def processor(self) -> Any:
        return open_processor(self.files, max_length=_LONGEST)


# ------------------------------------------------------------------ a bundle


def of_bundle(folder: Path, *, runtimes: Sequence[str] | None, start: Callable[[], Worker], threads: int,
              cores: tuple[int, ...]) -> tuple[Writer, list[Side]]:  # fmt: skip
    """The bundle on its own runtime; others that were named are refused. Raises InputError for one that writes no
    text."""
    manifest = read_manifest(folder)
    if manifest.answers is None or "input_ids" not in manifest.input_names:
        raise writes_nothing(f"{folder} is a bundle for {manifest.task}", "give --data for a duel, without --generate")
    verify_files(folder, manifest)  # what is read here would be believed
    kind, model = str(manifest.recipe["runtime"]["kind"]), folder / "model"
    config: dict[str, Any] = dict(manifest.recipe["runtime"])
    writer = Writer(
        str(folder), manifest.task, files_of(folder), read_facts(model), manifest.answers, words=None, kept=None
    )
    sides = [Side(name, reason=f"the bundle is one for {kind}") for name in runtimes or () if name != kind]
    if runtimes is not None and kind not in runtimes:
        return writer, sides
    own = Side(
        kind, manifest.recipe_label, config,
        partial(_open_bundle, folder=folder, threads=threads, cores=cores),
        manifest.model_bytes, _weight_bytes(start, model, kind), cache_precision(config),
    )  # fmt: skip
    return writer, [own, *sides]


def _open_bundle(worker: Worker, *, folder: Path, threads: int, cores: tuple[int, ...]) -> OpenFacts:
    return worker.open("hasten.pipeline.jobs:open_bundle", folder=folder, threads=threads, cores=cores)


def _weight_bytes(start: Callable[[], Worker], folder: Path, kind: str) -> int | None:
    """``None`` also where the library that reads such files is not installed."""
    with start() as worker:
        try:
            found: int | None = worker.call("hasten.pipeline.step_bytes:weight_bytes", folder=folder, kind=kind)
            return found
        except (Rejected, MissingDependency):
            return None


def writes_nothing(got: str, remedy: str) -> InputError:
    """The refusal of a model that cannot be measured so."""
    fits = "a model that writes text after text: a ...ForCausalLM, T5, BART or Marian, or a bundle of one"
    return InputError(f"{got}, which does not write for --generate", expected=fits, remedy=remedy)
