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

from hasten.bundle.answers import Answers
from hasten.measure.writing import FORCED, answered, ranked_first
from hasten.pipeline.lessons import Write, taught
from hasten.pipeline.prepare import Part, Prepared, batches_of
from hasten.records import Workload
from hasten.tasks.examples import ANSWER, collate, unbatched
from hasten.tasks.rows import Rows
from hasten.tasks.task import reading
from hasten.tasks.tokenize import Tokenizer

Arrays = dict[str, np.ndarray[Any, Any]]
PROGRESS_FILE = "progress.json"
_SCORED_ROWS = 1000
_SCORING_BATCH = 64
_WRITTEN_ROWS = 100
_WRITTEN_BATCH = 16
_MOST_WRITTEN = 512


@dataclass(frozen=True, slots=True)
class Material:
    """``rows`` and ``extra`` are single examples [1, ...]; ``targets`` belong to ``rows``, ``None`` without any.

    ``scored`` are the examples of each of the selection rows ``scored_rows``, in order.
    """

    rows: tuple[Arrays, ...]
    targets: tuple[np.ndarray[Any, Any], ...] | None
    extra: tuple[Arrays, ...]
    scored: Part
    scored_rows: Rows
    input_names: tuple[str, ...]
    tokenizer_json: str
    seed: int
    answers: Answers | None = None


def material_of(
    prepared: Prepared, *, labels: Sequence[str], tokenizer_json: str, seed: int, write: Write
) -> Material:  # fmt: skip
    """Everything of calibration, and the first thousand selection rows to score on; a hundred where that means to write
    answers. ``write`` is what the original does where its answers are to be learnt from."""
    prepared = taught(prepared, write=write)
    most = _SCORED_ROWS if prepared.answers is None else _WRITTEN_ROWS
    part = prepared.selection.head(min(most, len(prepared.selection)))
    learnt = prepared.calibration
    targets = prepared.task.targets(prepared.rows_of(learnt), labels, learnt.encoded)
    return Material(
        rows=tuple(prepared.singles(learnt)),
        targets=None if targets is None else tuple(np.asarray(target) for target in targets),
        extra=tuple(collate([e], prepared.input_names) for e in prepared.extra),
        scored=part,
        scored_rows=prepared.rows_of(part),
        input_names=tuple(name for name in prepared.input_names if name not in ANSWER),
        tokenizer_json=tokenizer_json,
        seed=seed,
        answers=prepared.answers,
    )


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

    if material.answers is not None:
        task = reading(task, Tokenizer(material.tokenizer_json, max_length=1), Workload())
        task = task.forcing() if material.scored_rows.labels is None else task
    score = _Score(material, original, task, tuple(labels))
    return Calibration(
        material.rows, targets=material.targets, extra=material.extra, original=original,
        tokenizer_json=material.tokenizer_json, validate=score, seed=material.seed, state=state, listen=listen,
        rehearse=rehearse, deadline=time.monotonic() + seconds,
    )  # fmt: skip


class _Score:
    """The task's metric of a wrapper on the selection rows; the original's outputs are made once."""

    def __init__(self, material: Material, original: Any, task: Any, labels: tuple[str, ...]) -> None:
        self._material, self._original, self._task, self._labels = material, original, task, labels
        self._reference: np.ndarray[Any, Any] | None = None

    def __call__(self, model: Any) -> float:
        if self._reference is None:
            self._reference = self._outputs(self._original)
        found = self._outputs(model, reference=self._reference)
        quality = self._task.score(found, self._material.scored_rows, self._labels, reference=self._reference)
        return float(quality.value)

    def _outputs(self, model: Any, *, reference: Any = None) -> np.ndarray[Any, Any]:
        given = self._material
        return outputs_of(
            model, given.scored, task=self._task, input_names=given.input_names, answers=given.answers,
            reference=reference,
        )  # fmt: skip


def written_by(checkpoint: Any, prepared: Prepared) -> Write:
    """What this checkpoint writes, in this process and to at most 512 rows."""

    def write(part: Part) -> np.ndarray[Any, Any]:
        wrapper, some = prepared.task.wrap(checkpoint).eval(), part.head(_MOST_WRITTEN)
        return outputs_of(wrapper, some, task=prepared.task, input_names=prepared.input_names, answers=prepared.answers)

    return write


def outputs_of(
    model: Any, part: Part, *, task: Any, input_names: Sequence[str], answers: Answers | None = None,
    reference: np.ndarray[Any, Any] | None = None,
) -> np.ndarray[Any, Any]:  # fmt: skip
    """Outputs [N, ...] of a wrapper on a part's rows, in their order, computed in batches of like length; with
    ``answers`` what it writes, or where the task says so what it would take in the place of the tokens that the
    original wrote, ``reference`` [N, T]."""
    import torch

    if answers is not None:
        upon = reference if task.forced else None
        return _written(model, part, task=task, input_names=input_names, answers=answers, reference=upon)
    examples = part.examples
    order = sorted(range(len(examples)), key=lambda i: examples[i].length)
    made: dict[int, np.ndarray[Any, Any]] = {}
    with torch.inference_mode():
        for start in range(0, len(order), _SCORING_BATCH):
            some = order[start : start + _SCORING_BATCH]
            chosen = [examples[i] for i in some]
            batch = {name: torch.from_numpy(array) for name, array in collate(chosen, input_names).items()}
            made |= dict(zip(some, unbatched([model(**batch).float().numpy()], chosen), strict=True))
    found: np.ndarray[Any, Any] = task.outputs([made[i] for i in range(len(examples))], part.encoded)
    return found


def _written(
    model: Any, part: Part, *, task: Any, input_names: Sequence[str], answers: Answers, reference: Any
) -> np.ndarray[Any, Any]:
    """Token ids [N, T] that the model writes, greedily and in eager PyTorch; with a ``reference`` those it would."""
    from hasten.runtimes.generation_facts import facts_of
    from hasten.runtimes.torch_generation import generation_session

    task_wrapper = task.wrap_model(model.hf, pooling=None, normalize=False)
    batches = batches_of(part.encoded, input_names, batch=_WRITTEN_BATCH)
    facts = facts_of(task_wrapper, batches[0])
    session = generation_session(model.hf, facts, precision="fp32", compiled=False)
    if reference is None:
        made = [answered(session, batch, answers.scored) for batch in batches]
    else:
        upon = [reference[start : start + _WRITTEN_BATCH] for start in range(0, len(part), _WRITTEN_BATCH)]
        given = [{**batch, FORCED: ids} for batch, ids in zip(batches, upon, strict=True)]
        made = ranked_first(session, batches=given, generation=answers.scored)
    found: np.ndarray[Any, Any] = task.outputs(unbatched(made, part.examples), part.encoded)
    return found
