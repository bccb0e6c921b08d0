"""The functions that run inside worker processes: load, wrap, pass, export, open.

Takes plain data (it crosses a process boundary), gives plain data or a session. The
parent process never imports torch; an export that crashes or runs out of memory takes
only its worker with it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from hasten.records import ModelRef, Rejected, config_from_dict

Arrays = dict[str, np.ndarray[Any, Any]]
OPENER = "hasten.pipeline.jobs:open_artifact"
PREFLIGHT_LAYERS = 2


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """What the parent needs to know of the loaded checkpoint."""

    family: str
    labels: tuple[str, ...]
    tokenizer_json: str
    tokenizer_files: dict[str, bytes]
    max_length: int
    source_hash: str
    license: str | None
    layers: int
    parameters: int
    can_shorten: bool


@dataclass(frozen=True, slots=True)
class Built:
    """An exported candidate on disk."""

    folder: Path
    input_names: tuple[str, ...]
    instructions: tuple[str, ...]
    notes: tuple[str, ...]
    bytes: int
    build_s: float


@lru_cache(maxsize=1)
def _checkpoint(ref: ModelRef, task: str) -> Any:
    from hasten.models.load import load_checkpoint

    return load_checkpoint(ref, task=task)


def checkpoint_facts(*, ref: ModelRef, task: str) -> CheckpointFacts:
    """Load the checkpoint (kept for the exports that follow) and describe it."""
    from hasten.models import adapter_for

    found = _checkpoint(ref, task)
    adapter = adapter_for(found.family)
    return CheckpointFacts(
        family=found.family,
        labels=found.labels,
        tokenizer_json=found.tokenizer_json,
        tokenizer_files=found.tokenizer_files,
        max_length=found.max_length,
        source_hash=found.source_hash,
        license=found.license,
        layers=0 if adapter is None else len(adapter.layers(found.model)),
        parameters=sum(p.numel() for p in found.model.parameters()),
        can_shorten=adapter is not None,
    )


def build_artifact(
    *,
    ref: ModelRef,
    task: str,
    recipe: Mapping[str, Any],
    calibration: Sequence[Arrays],
    folder: Path,
    cache: Path,
    layers: int | None,
) -> Built:
    """Make one candidate: (shortened) checkpoint -> passes -> runtime export.

    ``layers`` keeps only that many for preflight; ``None`` builds the whole model. ``cache`` is shared by
    all recipes of the same depth. Raises Rejected when the recipe cannot be built.
    """
    import torch

    from hasten.passes import run_pass
    from hasten.passes.calibration import Calibration
    from hasten.runtimes import get_runtime, read_recipe
    from hasten.tasks import get_task

    started = time.perf_counter()
    torch.manual_seed(0)
    parsed = read_recipe(recipe)
    wrapper = _wrapped(get_task(task), _checkpoint(ref, task), layers=layers)
    feeds = list(calibration)
    for config in parsed.passes:
        wrapper = run_pass(wrapper, config, Calibration(feeds))
    shared = cache / "-".join([f"layers{layers or 'all'}", *(p.kind for p in parsed.passes)])
    shared.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    exported = get_runtime(parsed.runtime.kind).export(
        wrapper, parsed.runtime, calibration=feeds, folder=folder, cache=shared
    )
    return Built(
        folder=folder,
        input_names=exported.input_names,
        instructions=exported.instructions,
        notes=exported.notes,
        bytes=sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()),
        build_s=time.perf_counter() - started,
    )


def open_artifact(*, folder: Path, config: Mapping[str, Any], threads: int, cores: tuple[int, ...]) -> Any:
    """The session of an exported candidate."""
    from hasten.runtimes import configs, get_runtime

    parsed = config_from_dict(config, configs())
    return get_runtime(parsed.kind).open(folder, parsed, threads=threads, cores=cores)


def open_bundle(*, folder: Path, threads: int | None, cores: tuple[int, ...] | None) -> Any:
    """A verified bundle as a session (hashes, instructions and golden outputs are checked)."""
    from hasten.bundle import load

    return load(folder, threads=threads, cores=cores)


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
