"""What passes learn from, where that is another view of the rows than the task's own.

A decoder that goes on from prompts is taught as a language model: to foresee the answers, token by token, after their
prompts (without references the prompts themselves). Passes then see every position and not the next token alone. All
other tasks are taught as they are.

Legend: L tokens of a prompt and its answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hasten.pipeline.prepare import Part, Prepared
from hasten.tasks import get_task
from hasten.tasks.examples import Example
from hasten.tasks.task import Generative, Task


def lesson(task: Task) -> Task:
    """The task that passes work for."""
    return get_task("language-modeling") if isinstance(task, Generative) and not task.encoder else task


def used(task: Task, wrapper: Any) -> Any:
    """What passes made, in the wrapper of the task itself."""
    if lesson(task).name == task.name:
        return wrapper
    return task.wrap_model(wrapper.hf, pooling=None, normalize=False).eval()


def taught(prepared: Prepared) -> Prepared:
    """The data as :func:`lesson` wants them."""
    task = lesson(prepared.task)
    if task is prepared.task:
        return prepared
    calibration, selection = (_read_on(prepared, part) for part in (prepared.calibration, prepared.selection))
    names = tuple(name for name in prepared.input_names if name != "token_type_ids")
    return replace(
        prepared, task=task, calibration=calibration, selection=selection, input_names=names, answers=None,
        extra=tuple(_whole(example) for example in prepared.extra),
    )  # fmt: skip


def _read_on(prepared: Prepared, part: Part) -> Part:
    """Prompts with their answers behind them, in one example a row."""
    answers = prepared.answers
    assert answers is not None
    references: Sequence[Any] = prepared.rows_of(part).labels or (None,) * len(part)
    rows = []
    for (prompt,), known in zip(part.encoded, references, strict=True):
        if known is None:
            rows.append((_whole(prompt),))
            continue
        said = prepared.processor.ids(known[0])[: answers.most - 1]
        rows.append((_joined(prompt, [*said, *answers.ends[:1]]),))
    return Part(part.index, tuple(rows))


def _joined(prompt: Example, answer: Sequence[int]) -> Example:
    ids = np.concatenate([prompt.arrays["input_ids"], np.array(answer, dtype=np.int64)])
    fresh = np.arange(len(ids)) >= prompt.length
    return _example(ids, fresh.astype(np.int64))


def _whole(prompt: Example) -> Example:
    ids = prompt.arrays["input_ids"]
    return _example(ids, np.ones_like(ids))


def _example(ids: Any, fresh: Any) -> Example:
    """``fresh`` [L] marks what is to be foreseen."""
    return Example({"input_ids": ids, "attention_mask": np.ones_like(ids), "fresh": fresh})
