"""Extractive question answering: the part of a context that answers a question.

A long context is read in windows, and the best span of any of them is the answer (Devlin et al. 2019). The metric is
SQuAD's F1, a mean over questions, with exact match beside it; both in points.
Legend: N rows, L tokens of a window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from hasten.records import Columns, InputError, Quality
from hasten.tasks.examples import Example
from hasten.tasks.rows import Rows
from hasten.tasks.squad import Answer, exact_match, f1, read_questions
from hasten.tasks.task import Array, Item, few_rows_warning

_STRIDE = 128  # tokens that neighbouring windows share
_LONGEST = 30  # tokens of an answer
_BEST = 20  # starts and ends that are tried with each other


@dataclass(frozen=True, slots=True)
class QuestionAnswering:
    """Outputs are [N, 4] in float64: the answer's first character in the context and the one after its last (both -1
    where there is no span), the logits of that span, and the logits of "no answer"."""

    name: str = "question-answering"
    head: str = "ForQuestionAnswering"
    auto: str = "AutoModelForQuestionAnswering"
    labelled: bool = False
    per_token: bool = True
    foretells: bool = False
    aliases: Mapping[str, str] = field(default_factory=lambda: {"question": "text", "context": "text_pair"})

    def read(self, source: str | Path, *, columns: Columns, labels_wanted: bool = True) -> Rows:
        return read_questions(source, columns=columns, labels_wanted=labels_wanted)

    def wrap(self, checkpoint: Any) -> Any:
        return self.wrap_model(checkpoint.model, pooling=None, normalize=False)

    def wrap_model(self, model: Any, *, pooling: str | None, normalize: bool) -> Any:
        del pooling, normalize
        from hasten.tasks.wrappers import SpanWrapper

        return SpanWrapper(model)

    def encode(self, processor: Any, item: Item) -> tuple[Example, ...]:
        """One example a window. Neighbours share 128 tokens, and of a short model (under 384) a third: a window must
        go on by more than it repeats. Raises InputError for a question without a context."""
        if item.get("text_pair") is None:
            raise InputError(
                f"the question {str(item.get('text'))[:60]!r} has no context",
                expected="the text that holds its answer, as text_pair",
                remedy="give both: (question, context)",
            )
        stride = min(_STRIDE, processor.max_length // 3)
        found: tuple[Example, ...] = processor.windows(item["text"], item["text_pair"], stride=stride)
        return found

    def targets(self, rows: Rows, labels: Sequence[str], encoded: Sequence[Sequence[Example]]) -> list[Array] | None:
        """int64 [2] a window: first and last token of the first right answer, both 0 where it is not all there."""
        del labels
        if rows.labels is None:
            return None
        return [
            _target(answers[0] if answers else None, window.arrays["offsets"])
            for answers, windows in zip(rows.labels, encoded, strict=True)
            for window in windows
        ]

    def outputs(self, raw: Sequence[Array], encoded: Sequence[Sequence[Example]]) -> Array:
        """``raw`` are logits [L, 2] of each token as start and as end, a window each."""
        windows = iter(raw)
        rows = [_best(list(islice(windows, len(own))), own) for own in encoded]
        return np.array(rows, dtype=np.float64).reshape(len(rows), 4)

    def check(self, rows: Rows, labels: Sequence[str]) -> tuple[Rows, tuple[str, ...]]:
        del labels
        if rows.pairs is None or rows.labels is None or not any(rows.labels):
            missing = "contexts" if rows.pairs is None else "answers"
            raise InputError(
                f"{rows.source} has no {missing} (columns: {', '.join(rows.column_names)})",
                expected="a context for every question, and answers for most",
                remedy="name the columns with --text-pair-column and --label-column",
            )
        for number, (context, answers) in enumerate(zip(rows.pairs, rows.labels, strict=True), start=1):
            for answer in answers:
                _check_place(answer, context, where=f"row {number} of {rows.source}")
        return rows, few_rows_warning(len(rows))

    def comparable(self, outputs: Array) -> Array:
        return outputs

    def score(self, outputs: Array, rows: Rows, labels: Sequence[str], *, reference: Array | None) -> Quality:
        each = self.per_row(outputs, rows, labels, reference=reference)
        said = zip(_said(outputs, rows), rows.labels or (), strict=True)
        others = {"exact_match": 100.0 * float(np.mean([exact_match(text, answers) for text, answers in said]))}
        return Quality("f1", float(each.mean()), len(rows), others)

    def per_row(self, outputs: Array, rows: Rows, labels: Sequence[str], *, reference: Array | None) -> Array:
        del labels, reference
        said = zip(_said(outputs, rows), rows.labels or (), strict=True)
        return np.array([100.0 * f1(text, answers) for text, answers in said], dtype=np.float64)

    def predictions(self, outputs: Array, rows: Rows, labels: Sequence[str]) -> tuple[list[str], list[str]] | None:
        """Answers, and of the right ones the first; "" for no answer."""
        del labels
        return _said(outputs, rows), [answers[0].text if answers else "" for answers in rows.labels or ()]

    def decode(self, outputs: Array, rows: Rows, labels: Sequence[str]) -> list[Any]:
        """``{"answer", "start", "end", "score", "no_answer_score"}``: the part of the context from character ``start``
        up to ``end`` (both -1 for none), its logits and those of "no answer". Whoever expects questions without an
        answer takes none where ``no_answer_score`` is the larger."""
        del labels
        return [
            {
                "answer": context[max(0, start) : max(0, end)], "start": start, "end": end,
                "score": float(score), "no_answer_score": float(nothing),
            }
            for context, (start, end), (score, nothing) in zip(
                rows.pairs or (), _places(outputs, rows), outputs[:, 2:], strict=True
            )
        ]  # fmt: skip


def _said(outputs: Array, rows: Rows) -> list[str]:
    """The answer of each row; "" for none."""
    places = zip(rows.pairs or (), _places(outputs, rows), strict=True)
    return [context[max(0, start) : max(0, end)] for context, (start, end) in places]


def _places(outputs: Array, rows: Rows) -> list[tuple[int, int]]:
    """First character of each answer and the one after its last, (-1, -1) for none, without the white space that some
    tokenizers count to a token. No answer wins by its logits where the data has questions without one."""
    may_be_none = rows.labels is not None and not all(rows.labels)
    found = []
    for context, (first, after, score, nothing) in zip(rows.pairs or (), outputs.tolist(), strict=True):
        start, text = int(first), context[max(0, int(first)) : max(0, int(after))]
        if start < 0 or not text.strip() or (may_be_none and nothing > score):
            found.append((-1, -1))
            continue
        start += len(text) - len(text.lstrip())
        found.append((start, start + len(text.strip())))
    return found


def _target(answer: Answer | None, offsets: Array) -> Array:
    """``offsets`` [L, 2]: the characters of the context that each token covers, (-1, -1) for other tokens."""
    nowhere = np.zeros(2, dtype=np.int64)
    inside = np.flatnonzero(offsets[:, 0] >= 0)
    if answer is None or not len(inside):
        return nowhere
    start = answer.start + len(answer.text) - len(answer.text.lstrip())
    end = start + len(answer.text.strip())
    if offsets[inside[0], 0] > start or offsets[inside[-1], 1] < end:
        return nowhere
    covering = inside[(offsets[inside, 0] < end) & (offsets[inside, 1] > start)]
    return covering[[0, -1]].astype(np.int64) if len(covering) else nowhere


def _best(logits: Sequence[Array], windows: Sequence[Example]) -> tuple[float, float, float, float]:
    """One row of the outputs. The first token stands for "no answer"; the window surest of an answer decides."""
    nothing = float(np.min([own[0].astype(np.float64).sum() for own in logits]))
    pairs = zip(logits, windows, strict=True)
    spans = [_span(own.astype(np.float64), window.arrays["offsets"]) for own, window in pairs]
    found = [span for span in spans if span is not None]
    if not found:
        return -1.0, -1.0, nothing, nothing
    start, end, score = found[int(np.argmax([score for *_, score in found]))]
    return float(start), float(end), score, nothing


def _span(logits: Array, offsets: Array) -> tuple[int, int, float] | None:
    """First character, the one after the last and the logits of a window's best span that is not too long."""
    inside = np.flatnonzero(offsets[:, 0] >= 0)
    starts, ends = (inside[np.argsort(-column[inside], kind="stable")[:_BEST]] for column in logits.T)
    tokens = ends[None, :] - starts[:, None] + 1
    allowed = (tokens >= 1) & (tokens <= _LONGEST)
    if not allowed.any():
        return None
    scores = np.where(allowed, logits[starts, 0][:, None] + logits[ends, 1][None, :], -np.inf)
    first, last = np.unravel_index(int(scores.argmax()), scores.shape)
    return int(offsets[starts[first], 0]), int(offsets[ends[last], 1]), float(scores[first, last])


def _check_place(answer: Answer, context: str, *, where: str) -> None:
    there = context[max(0, answer.start) : max(0, answer.start + len(answer.text))]
    if answer.start >= 0 and there == answer.text:
        return
    place = context.find(answer.text)
    raise InputError(
        f"{where}: the answer {answer.text[:40]!r} is not at character {answer.start} of its context; there is "
        f"{there[:40]!r}",
        expected="answer_start counts the characters before the answer, from 0",
        remedy=f"it is at {place}: correct answer_start" if place >= 0 else "the context lacks it: drop the row",
    )
