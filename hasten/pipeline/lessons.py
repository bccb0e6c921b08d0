"""What passes learn from, where that is another view of the rows than the task's own.

A decoder that goes on from prompts is taught as a language model: to foresee the answers, token by token, after their
prompts (without references the prompts themselves). An encoder-decoder is taught pairs: what it reads, and the answer
that is forced on its decoder. The answers are the references, or where there are none (and for further texts) what the
original writes: sequence-level distillation (Kim and Rush 2016). Passes then see every position and not the next token
alone. All other tasks are taught as they are.

Legend: L tokens of a prompt and its answer, T of an answer with what it begins with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hasten.pipeline.prepare import Part, Prepared
from hasten.tasks import get_task
from hasten.tasks.examples import ANSWER, Example
from hasten.tasks.task import Array, Generative, Task

# What the original writes to a part's rows, ids [N, T] with -1 behind each end, or to as many of the first as it can.
Write = Callable[[Part], Array]


def lesson(task: Task) -> Task:
    """The task that passes work for."""
    if not isinstance(task, Generative):
        return task
    return task.in_full() if task.encoder else get_task("language-modeling")


def used(task: Task, wrapper: Any) -> Any:
    """What passes made, in the wrapper of the task itself."""
    if not isinstance(task, Generative):
        return wrapper
    return task.wrap_model(wrapper.hf, pooling=None, normalize=False).eval()


def taught(prepared: Prepared, *, write: Write) -> Prepared:
    """The data as :func:`lesson` wants them; ``write`` is asked where there are no answers to be taught."""
    task = lesson(prepared.task)
    if not isinstance(prepared.task, Generative):
        return prepared
    if prepared.task.encoder:
        return _with_answers(prepared, task, write)
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
    end = _end_of(prepared)
    references: Sequence[Any] = prepared.rows_of(part).labels or (None,) * len(part)
    rows = []
    for (prompt,), known in zip(part.encoded, references, strict=True):
        if known is None:
            rows.append((_whole(prompt),))
            continue
        said = prepared.processor.ids(known[0])[: answers.most - 1]
        rows.append((_joined(prompt, [*said, *end]),))
    return Part(part.index, tuple(rows))


def _with_answers(prepared: Prepared, task: Task, write: Write) -> Prepared:
    """Calibration and further texts with answers beside them; selection stays as it is, and is answered to be scored.

    What the original has no time to answer is left out.
    """
    learnt, given = prepared.calibration, prepared.answers
    assert given is not None
    references = prepared.rows_of(learnt).labels if prepared.processor.writes else None
    known: list[Sequence[int]] = [
        [*prepared.processor.ids(texts[0])[: given.most - 1], *given.ends[:1]] for texts in references or ()
    ]
    sources = [*(row[0] for row in learnt.encoded), *prepared.extra]
    asked = sources[len(known) :]
    if asked:
        made = write(Part(tuple(range(len(asked))), tuple((source,) for source in asked)))
        known += [[i for i in ids.tolist() if i >= 0] for ids in made]
    pairs = [_pair(source, given.start, answer) for source, answer in zip(sources, known, strict=False)]
    rows = tuple((pair,) for pair in pairs[: len(learnt)])
    return replace(
        prepared, task=task, calibration=Part(learnt.index[: len(rows)], rows), extra=tuple(pairs[len(learnt) :]),
        input_names=(*prepared.input_names, *ANSWER),
    )  # fmt: skip


def _pair(source: Example, start: Sequence[int], answer: Sequence[int]) -> Example:
    """``fresh`` [T] marks what is to be foreseen."""
    ids = np.array([*start, *answer], dtype=np.int64)
    fresh = (np.arange(len(ids)) >= len(start)).astype(np.int64)
    beside = dict(zip(ANSWER, (ids, np.ones_like(ids)), strict=True))
    return Example({**source.arrays, **beside, "fresh": fresh}, truncated=source.truncated)


def _end_of(prepared: Prepared) -> tuple[int, ...]:
    """The token behind an answer: of several, the one that the chat template writes there."""
    ends = () if prepared.answers is None else prepared.answers.ends
    closing = prepared.processor.closing_id(ends) if prepared.task.chat else None
    return ends[:1] if closing is None else (closing,)


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
