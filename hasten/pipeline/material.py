"""What passes are given to work with, carried to the process that runs them.

Takes the prepared data, gives :class:`Material` (plain data); in the worker, that becomes a
:class:`hasten.passes.calibration.Calibration`. Rows of the final test are never in it, and rows of selection only
behind a function that answers with a score.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hasten.pipeline.prepare import Part, Prepared
from hasten.tasks.rows import Rows
from hasten.tasks.tokenize import Encoded, pad_batch

Arrays = dict[str, np.ndarray[Any, Any]]
PROGRESS_FILE = "progress.json"
_SCORED_ROWS = 1000
_SCORING_BATCH = 64


@dataclass(frozen=True, slots=True)
class Material:
    """``rows`` and ``extra`` are single sequences [1, L]; ``labels`` (names) belong to ``rows``, ``None`` without any.

    ``scored`` are the sequences of the selection rows ``scored_rows``, in order.
    """

    rows: tuple[Arrays, ...]
    labels: tuple[str, ...] | None
    extra: tuple[Arrays, ...]
    scored: tuple[Arrays, ...]
    scored_rows: Rows
    tokenizer_json: str
    seed: int


def material_of(prepared: Prepared, *, extra: Sequence[Encoded], tokenizer_json: str, seed: int) -> Material:
    """Everything of calibration, and the first thousand selection rows to score on."""
    part = prepared.selection.head(min(_SCORED_ROWS, len(prepared.selection)))
    labels = prepared.rows_of(prepared.calibration).labels if not prepared.task.pairs_apart else None
    return Material(
        rows=_singles(prepared, prepared.calibration),
        labels=None if labels is None else tuple(str(label) for label in labels),
        extra=tuple(pad_batch([e], prepared.input_names) for e in extra),
        scored=_singles(prepared, part),
        scored_rows=prepared.rows_of(part),
        tokenizer_json=tokenizer_json,
        seed=seed,
    )


def _singles(prepared: Prepared, part: Part) -> tuple[Arrays, ...]:
    return tuple(prepared.batches(part, batch=1))


def calibration_of(
    material: Material, *, original: Any, task: Any, labels: Sequence[str], state: Path | None,
    rehearse: Callable[[float], None] | None = None, seconds: float = math.inf,
) -> Any:  # fmt: skip
    """The same as a pass sees it. ``original`` is the unchanged wrapper, ``labels`` the model's names in id order;
    training has ``seconds`` from now on, and keeps what it needs to go on after a kill in ``state``."""
    from hasten.passes.calibration import Calibration, Progress

    def listen(progress: Progress) -> None:
        if state is None:
            return
        state.mkdir(parents=True, exist_ok=True)
        part = state / (PROGRESS_FILE + ".part")
        said = {"what": progress.what, "done": progress.done, "total": progress.total, "score": progress.score}
        part.write_text(json.dumps(said))
        part.replace(state / PROGRESS_FILE)

    number = {name: i for i, name in enumerate(labels)}
    classes = None if material.labels is None else np.array([number[name] for name in material.labels])
    score = _Score(material, original, task, tuple(labels))
    return Calibration(
        material.rows, labels=classes, extra=material.extra, original=original, tokenizer_json=material.tokenizer_json,
        validate=score, seed=material.seed, state=state, listen=listen, rehearse=rehearse,
        deadline=time.monotonic() + seconds,
    )  # fmt: skip


class _Score:
    """The task's metric of a wrapper on the selection rows; the original's outputs are made once."""

    def __init__(self, material: Material, original: Any, task: Any, labels: tuple[str, ...]) -> None:
        self._material, self._original, self._task, self._labels = material, original, task, labels
        self._reference: np.ndarray[Any, Any] | None = None

    def __call__(self, model: Any) -> float:
        if self._reference is None:
            self._reference = outputs_of(self._original, self._material.scored)
        quality = self._task.score(
            outputs_of(model, self._material.scored),
            self._material.scored_rows,
            self._labels,
            reference=self._reference,
        )
        return float(quality.value)


def outputs_of(model: Any, rows: Sequence[Arrays]) -> np.ndarray[Any, Any]:
    """Outputs [N, C] of a wrapper on single sequences, in their order, computed in batches of like length."""
    import torch

    from hasten.passes.calibration import padded

    order = sorted(range(len(rows)), key=lambda i: rows[i]["input_ids"].shape[1])
    made: dict[int, np.ndarray[Any, Any]] = {}
    with torch.inference_mode():
        for start in range(0, len(order), _SCORING_BATCH):
            some = order[start : start + _SCORING_BATCH]
            outputs = model(**padded([rows[i] for i in some])).float().numpy()
            made |= dict(zip(some, outputs, strict=True))
    return np.stack([made[i] for i in range(len(rows))])
