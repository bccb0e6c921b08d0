"""Run a recipe's passes in the worker, each prefix of them once.

Takes a loaded checkpoint and pass configs, gives the changed wrapper. What a prefix of passes made is kept on disk, so
recipes that share it (prune once, quantize thrice) and a resumed run do not make it again.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hasten.pipeline.material import Material, calibration_of
from hasten.records import Config, config_to_dict

_DONE = "done.json"
_STATE = "state"


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
    """The task's wrapper after all ``passes``.

    With ``rehearse`` (a list) training passes only measure what they would take, in seconds, and add it to the list;
    nothing is kept then. All together have ``seconds``; a training that gets less ends with the best it has. What they
    have to say of their result is added to ``notes``. Raises Rejected when a pass cannot do its work.
    """
    from hasten.passes import check_order, run_pass

    check_order(passes)
    started = time.monotonic()
    original = _wrap(task, checkpoint, copy.deepcopy(checkpoint.model))
    done = next((n for n in range(len(passes), 0, -1) if (cache / passes_id(passes[:n]) / _DONE).is_file()), 0)
    wrapper = copy.deepcopy(original)
    if done:
        wrapper = _opened(task, checkpoint, cache / passes_id(passes[:done]))
        notes += json.loads((cache / passes_id(passes[:done]) / _DONE).read_text())["notes"]
    for number in range(done, len(passes)):
        folder = cache / passes_id(passes[: number + 1])
        given = calibration_of(
            material, original=original, task=task, labels=checkpoint.labels, state=folder / _STATE,
            rehearse=None if rehearse is None else rehearse.append, seconds=seconds - (time.monotonic() - started),
        )  # fmt: skip
        wrapper = run_pass(wrapper, passes[number], replace(given, listen=partial(_noting, given.listen, notes)))
        if not rehearse:  # nothing was left out so far
            _keep(wrapper, folder, passes[: number + 1], notes)
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
    model = open_model(type(checkpoint.model), folder / "model", attention=attention, dtype=torch.float32)
    return _wrap(task, checkpoint, model)


def _keep(wrapper: Any, folder: Path, passes: Sequence[Config], notes: Sequence[str]) -> None:
    """Weights first, the mark that they are whole last."""
    from hasten.models.reshape import save_model

    shutil.rmtree(folder / "model", ignore_errors=True)
    save_model(wrapper.hf, folder / "model")
    done = {"passes": [config_to_dict(p) for p in passes], "notes": list(notes)}
    (folder / _DONE).write_text(json.dumps(done))
    shutil.rmtree(folder / _STATE, ignore_errors=True)  # only now: until here a killed run trains on from it
