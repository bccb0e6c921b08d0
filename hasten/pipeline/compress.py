"""Run a recipe's passes in the worker, each prefix of them once.

Takes a loaded checkpoint and pass configs, gives the changed wrapper. What a prefix of passes made is kept on disk, so
recipes that share it (prune once, quantize thrice) and a resumed run do not make it again.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hasten.pipeline.material import Material, calibration_of
from hasten.pipeline.pacing import paced
from hasten.pipeline.pass_cache import DAMAGED, PassCache, made_from
from hasten.records import Config, config_to_dict


def passes_id(passes: Sequence[Config]) -> str:
    """Twelve hex digits that stand for these passes with these settings, in this order."""
    text = json.dumps([config_to_dict(p) for p in passes], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def compressed(
    checkpoint: Any,
    task: Any,
    passes: Sequence[Config],
    *,
    material: Material,
    cache: Path,
    rehearse: list[float] | None,
    notes: list[str],
    seconds: float = math.inf,
) -> Any:
    """The task's wrapper after all ``passes``; those whose result is in ``cache`` are not run
    (:class:`hasten.pipeline.pass_cache.PassCache`).

    With ``rehearse`` (a list) training passes only measure what they would take, in seconds, and add it to the list;
    nothing is kept then. All together have ``seconds``: a training that gets less ends with the best it has, other
    passes look at fewer rows. What they have to say of their result is added to ``notes``. Raises Rejected when a pass
    cannot do its work, or not in time.
    """
    from hasten.models.reshape import save_model
    from hasten.passes import check_order

    check_order(passes)
    started = time.monotonic()
    original = _wrap(task, checkpoint, copy.deepcopy(checkpoint.model))
    store = PassCache(
        cache, made_from(material, source_hash=checkpoint.source_hash, task=task.name, labels=checkpoint.labels)
    )
    names = [passes_id(passes[:count]) for count in range(1, len(passes) + 1)]
    kept = store.newest(names, say=notes.append)
    said = [] if kept is None else list(kept.notes)
    wrapper = copy.deepcopy(original) if kept is None else _opened(task, checkpoint, kept.folder)
    for number in range(0 if kept is None else kept.count, len(passes)):
        given = calibration_of(
            material, original=original, task=task, labels=checkpoint.labels, state=store.state(names[number]),
            rehearse=None if rehearse is None else rehearse.append, seconds=seconds - (time.monotonic() - started),
        )  # fmt: skip
        given = replace(given, listen=partial(_noting, given.listen, said))
        wrapper = paced(wrapper, passes, number, given, seconds=seconds)
        if not rehearse:  # nothing was left out so far
            about = [config_to_dict(p) for p in passes[: number + 1]]
            lasting = [note for note in said if DAMAGED not in note]  # what happened on the way is told once
            store.keep(names[number], write=partial(save_model, wrapper.hf), notes=lasting, about=about)
    notes += said
    return wrapper.eval()


def _noting(listen: Callable[[Any], None], notes: list[str], progress: Any) -> None:
    """Hear what a pass says, and keep what is worth it."""
    listen(progress)
    if progress.note:
        notes.append(progress.what)


def _wrap(task: Any, checkpoint: Any, model: Any) -> Any:
    return task.wrap(replace(checkpoint, model=model)).eval()


def _opened(task: Any, checkpoint: Any, folder: Path) -> Any:
    import torch

    from hasten.models.reshape import open_model

    attention = checkpoint.config._attn_implementation or "sdpa"
    model = open_model(type(checkpoint.model), folder, attention=attention, dtype=torch.float32)
    return _wrap(task, checkpoint, model)
