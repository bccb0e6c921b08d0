"""The functions that run inside worker processes: load, wrap, pass, export, open.

Takes plain data (it crosses a process boundary), gives plain data or a session. No model
is ever loaded in the parent process; an export that crashes or runs out of memory takes
only its worker with it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.measure.writing import FORCED
from hasten.models.writing import Writing, writing_of
from hasten.pipeline.disk import on_watched_disk
from hasten.records import ModelRef, Rejected, config_from_dict
from hasten.tasks.chat import with_day

if TYPE_CHECKING:
    from hasten.pipeline.material import Material

Arrays = dict[str, np.ndarray[Any, Any]]
OPENER = "hasten.pipeline.jobs:open_artifact"
PREFLIGHT_LAYERS = 2


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """What the parent needs to know of the loaded checkpoint.

    ``tokenizer_json`` is empty for a model of images. ``layers``, ``heads`` and ``neurons`` (of all layers together)
    are 0 for a family without an adapter. ``words``: rows of the word table, ``None`` where no tokens go in.
    """

    family: str
    labels: tuple[str, ...]
    tokenizer_json: str
    processor_files: dict[str, bytes]
    input_names: tuple[str, ...]
    max_length: int
    source_hash: str
    license: str | None
    layers: int
    heads: int
    neurons: int
    parameters: int
    writing: Writing = field(default_factory=Writing)
    words: int | None = None


@dataclass(frozen=True, slots=True)
class Built:
    """An exported candidate on disk.

    ``reference``: eager's outputs on the parity batches, where passes made it another function than the original.
    ``training_s``: what a rehearsal says the training will take.
    """

    folder: Path
    input_names: tuple[str, ...]
    instructions: tuple[str, ...]
    notes: tuple[str, ...]
    bytes: int
    build_s: float
    reference: tuple[np.ndarray[Any, Any], ...] | None = None
    training_s: float = 0.0


@lru_cache(maxsize=1)
def loaded(ref: ModelRef, task: str) -> Any:
    """The checkpoint, kept for what follows; nobody changes it."""
    from hasten.models.load import load_checkpoint
    from hasten.tasks import get_task

    return load_checkpoint(ref, task=get_task(task))


def checkpoint_facts(*, ref: ModelRef, task: str) -> CheckpointFacts:
    """Load the checkpoint (kept for the exports that follow) and describe it."""
    return describe(loaded(ref, task))


def describe(found: Any) -> CheckpointFacts:
    """The facts of a loaded checkpoint."""
    from hasten.models import adapter_for

    adapter = adapter_for(found.family)
    layers = [] if adapter is None else list(adapter.layers(found.model))
    depth = 0 if adapter is None else adapter.stacks(found.model)[0].depth
    return CheckpointFacts(
        family=found.family,
        labels=found.labels,
        tokenizer_json=found.tokenizer_json,
        processor_files=with_day(found.processor_files),
        input_names=found.input_names,
        max_length=found.max_length,
        source_hash=found.source_hash,
        license=found.license,
        layers=depth,
        heads=sum(adapter.attention(layer).groups for layer in layers) if adapter else 0,
        neurons=sum(ffn.neurons for layer in layers for ffn in adapter.ffns(layer)) if adapter else 0,
        parameters=sum(p.numel() for p in found.model.parameters()),
        writing=writing_of(found.model),
        words=_words(found.model) if "input_ids" in found.input_names else None,
    )


def _words(model: Any) -> int | None:
    """Rows of the word table; ``None`` for a family that does not say which one that is (transformers then raises the
    one, or its class looks for a part that it lacks and raises the other)."""
    try:
        weight = getattr(model.get_input_embeddings(), "weight", None)
    except (NotImplementedError, AttributeError):
        return None
    return None if weight is None else len(weight)


@on_watched_disk
def build_artifact(
    *,
    ref: ModelRef,
    task: str,
    recipe: Mapping[str, Any],
    calibration: Sequence[Arrays],
    folder: Path,
    cache: Path,
    pass_cache: Path | None = None,
    layers: int | None = None,
    material: Material | None = None,
    parity: Sequence[Arrays] | None = None,
    rehearse: bool = False,
    seconds: float = math.inf,
) -> Built:
    """Make one candidate: (shortened) checkpoint -> passes -> runtime export.

    ``layers`` keeps only that many for preflight; ``None`` builds the whole model. Passes need ``material`` and
    ``pass_cache`` and may take ``seconds``; ``rehearse`` leaves their training out and says what it would take.
    ``cache`` is shared by all exports of the same module; eager's outputs on ``parity`` come back, since the original's
    are another function's.
    Raises Rejected when the recipe cannot be built, and DiskFull when there is no room for it.
    """
    import torch

    from hasten.pipeline.compress import compressed, passes_id
    from hasten.pipeline.lessons import lesson, used
    from hasten.runtimes import get_runtime, read_recipe
    from hasten.tasks import get_task

    started = time.perf_counter()
    parsed = read_recipe(recipe)
    torch.manual_seed(0)
    trained_s: list[float] = []
    notes: list[str] = []
    if parsed.passes:
        assert material is not None
        assert pass_cache is not None
        wrapper = compressed(
            loaded(ref, task), lesson(get_task(task)), parsed.passes, material=material, cache=pass_cache,
            seconds=seconds, rehearse=trained_s if rehearse else None, notes=notes,
        )  # fmt: skip
        wrapper = used(get_task(task), wrapper)
        # With nothing left to train a rehearsal makes the real thing, and may share its exports.
        name = f"{'rehearsed' if trained_s else 'passes'}-{passes_id(parsed.passes)}"
    else:
        wrapper, name = _wrapped(get_task(task), loaded(ref, task), layers=layers), f"layers{layers or 'all'}"
    shared = cache / name
    shared.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    reference = _eager(wrapper, parity) if parity is not None else None
    exported = get_runtime(parsed.runtime.kind).export(
        wrapper, parsed.runtime, calibration=list(calibration), folder=folder, cache=shared
    )
    return Built(
        folder=folder, input_names=exported.input_names, instructions=exported.instructions,
        notes=(*notes, *exported.notes),
        bytes=sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()),
        build_s=time.perf_counter() - started, reference=reference, training_s=sum(trained_s),
    )  # fmt: skip


def _eager(wrapper: Any, batches: Sequence[Arrays]) -> tuple[np.ndarray[Any, Any], ...]:
    """What the model says without any runtime; of text that is written the logits around the forced ids."""
    import torch

    if any(FORCED in batch for batch in batches):
        from hasten.runtimes.torch_generation import forced_logits

        prompts = [{name: array for name, array in batch.items() if name != FORCED} for batch in batches]
        return tuple(forced_logits(wrapper, p, b[FORCED]) for p, b in zip(prompts, batches, strict=True))
    with torch.inference_mode():
        return tuple(wrapper(**{n: torch.from_numpy(a) for n, a in b.items()}).float().numpy() for b in batches)


@on_watched_disk
def open_artifact(*, folder: Path, config: Mapping[str, Any], threads: int, cores: tuple[int, ...]) -> Any:
    """The session of an exported candidate."""
    from hasten.runtimes import configs, get_runtime

    parsed = config_from_dict(config, configs())
    return get_runtime(parsed.kind).open(folder, parsed, threads=threads, cores=cores)


@on_watched_disk
def open_bundle(*, folder: Path, threads: int | None, cores: tuple[int, ...] | None) -> Any:
    """A verified bundle as a session (hashes, instructions and golden outputs are checked)."""
    from hasten.bundle import load

    return load(folder, threads=threads, cores=cores).session


def _wrapped(task: Any, checkpoint: Any, *, layers: int | None) -> Any:
    """The task's wrapper around a (shortened) deep copy, so that no recipe sees another's changes."""
    import copy
    import dataclasses

    from hasten.models import adapter_for
    from hasten.models.surgery import shortened

    if layers is None:
        return task.wrap(dataclasses.replace(checkpoint, model=copy.deepcopy(checkpoint.model))).eval()
    adapter = adapter_for(checkpoint.family)
    if adapter is None:
        raise Rejected("preflight", f"the family {checkpoint.family} has no adapter to make a two-layer copy")
    short = shortened(checkpoint.model, adapter, layers=layers)
    return task.wrap(dataclasses.replace(checkpoint, model=short)).eval()
