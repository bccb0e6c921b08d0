"""Questions, their contexts and answers in SQuAD's forms, and its two scores of an answer.

Takes SQuAD's nested JSON (1.1 and 2.0) or a table with a question and a context a row, gives :class:`Rows`: texts are
the questions, pairs the contexts, and labels the right answers of each row, none where the context has no answer.
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from hasten.records import Columns, InputError
from hasten.tasks.columns import one_column
from hasten.tasks.rows import Rows, content_hash
from hasten.tasks.tables import Table, read_table, read_utf8

_QUESTION = ("question", "query", "text")
_CONTEXT = ("context", "passage", "paragraph", "document", "text_pair")
_ANSWERS = ("answers", "answer", "answer_text")
_START = ("answer_start", "start", "answer_starts")


@dataclass(frozen=True, slots=True)
class Answer:
    """A right answer and the character of the context that it starts at."""

    text: str
    start: int


def read_questions(source: str | Path, *, columns: Columns, labels_wanted: bool = True) -> Rows:
    """Rows of questions; without ``labels_wanted`` no answers are looked for. Raises InputError for a malformed file
    or row and for a missing column."""
    table = _nested(source) or read_table(source)
    if not table.rows:
        raise InputError(f"{source} holds no rows", expected="at least one question", remedy="give another file")
    question = _column(table, columns.text, _QUESTION, flag="--text-column", source=source)
    context = _column(table, columns.text_pair, _CONTEXT, flag="--text-pair-column", source=source)
    numbered = [(f"row {number} of {source}", row) for number, row in enumerate(table.rows, start=1)]
    questions = tuple(_string(row.get(question), where=f"{where}: column {question!r}") for where, row in numbered)
    contexts = tuple(_string(row.get(context), where=f"{where}: column {context!r}") for where, row in numbered)
    answers = None
    if labels_wanted:
        given = [name for name in table.names if name not in (question, context)]
        column = one_column(given, columns.label, usual=_ANSWERS, flag="--label-column", source=str(source))
        start = one_column(given, None, usual=_START, flag="--label-column", source=str(source))
        if column is not None:
            answers = tuple(
                _answers(row.get(column), row.get(start) if start else None, where=f"{where}: column {column!r}")
                for where, row in numbered
            )
    starts = None if answers is None else [[astuple(answer) for answer in own] for own in answers]
    sha256 = content_hash(questions, contexts, starts)
    return Rows(questions, contexts, answers, source=str(source), sha256=sha256, column_names=table.names)


def _nested(source: str | Path) -> Table | None:
    """SQuAD's own form as a table, or ``None`` for any other file."""
    path = Path(source).expanduser()
    if path.suffix.lower() != ".json" or not path.is_file():
        return None
    try:
        content = json.loads(read_utf8(path))
    except (ValueError, RecursionError):  # objects line by line, or broken: the reader of tables tells which
        return None
    if not isinstance(content, dict) or not isinstance(content.get("data"), list):
        return None
    try:
        rows = [
            {
                "question": asked["question"],
                "context": paragraph["context"],
                "answers": [] if asked.get("is_impossible") else asked.get("answers") or [],
            }
            for article in content["data"]
            for paragraph in article["paragraphs"]
            for asked in paragraph["qas"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{source} lacks a part of SQuAD's form ({type(error).__name__}: {error})",
            expected='{"data": [{"paragraphs": [{"context", "qas": [{"question", "answers"}]}]}]}',
            remedy="correct the file, or give a table with the columns question, context and answers",
        ) from error
    return Table(("question", "context", "answers"), list(rows))


def _column(table: Table, given: str | None, usual: Sequence[str], *, flag: str, source: str | Path) -> str:
    found = one_column(table.names, given, usual=usual, flag=flag, source=str(source))
    if found is None:
        raise InputError(
            f"{source} has the columns {', '.join(table.names)}; none has a usual name for the {usual[0]}",
            expected=f"a column such as {', '.join(usual[:3])}",
            remedy=f"name it with {flag}",
        )
    return found


def _string(value: Any, *, where: str) -> str:
    if isinstance(value, str) and value.strip():
        return value
    raise InputError(
        f"{where} holds {type(value).__name__} {str(value)[:40]!r}",
        expected="a text in every row",
        remedy="fill or drop such rows, or name another column",
    )


# --------------------------------------------------------------------------- answers


def _answers(value: Any, start: Any, *, where: str) -> tuple[Answer, ...]:
    """Of a list of answers, of one mapping with two lists, of either as JSON, or of a text with its start."""
    if isinstance(value, str) and start is None and value.lstrip()[:1] in ("{", "["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise _bad(value, where=where, expected="answers in JSON") from error
    if isinstance(value, list):
        return tuple(answer for one in value for answer in _answers(one, None, where=where))
    if isinstance(value, Mapping):
        value, start = value.get("text"), value.get("answer_start")
    texts = value if isinstance(value, list) else [value]
    starts = start if isinstance(start, list) else [start] * len(texts)
    if len(texts) != len(starts):
        raise _bad(value, where=where, expected=f"a start for each of the {len(texts)} answers")
    pairs = zip(texts, starts, strict=True)
    return tuple(_answer(text, first, where=where) for text, first in pairs if text not in (None, ""))


def _answer(text: Any, start: Any, *, where: str) -> Answer:
    if not isinstance(text, str):
        raise _bad(text, where=where, expected="a text")
    try:
        first = float(start)  # text from a table whose column has gaps: 12.0
        if not first.is_integer():
            raise ValueError(start)
    except (TypeError, ValueError) as error:
        raise _bad(
            start, where=where, expected=f"the character of the context at which {text[:40]!r} starts (answer_start)"
        ) from error
    return Answer(text, int(first))


def _bad(value: Any, *, where: str, expected: str) -> InputError:
    return InputError(
        f"{where} holds {type(value).__name__} {str(value)[:60]!r}",
        expected=expected,
        remedy='give {"text": [...], "answer_start": [...]}, or a text beside a column answer_start',
    )


# --------------------------------------------------------------------------- scores


def words_of(text: str) -> list[str]:
    """The words of an answer that are compared: small letters, without ASCII punctuation and English articles.

    As defined with the data (Rajpurkar et al. 2016, evaluation script). Written here: the kept library with it
    (torchmetrics) needs torch, and knows no question without an answer.
    """
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(?:a|an|the)\b", " ", bare).split()


def exact_match(said: str, answers: Sequence[Answer]) -> float:
    """1.0 when the words are those of a right answer; without any, when nothing is said."""
    return float(any(words_of(said) == words_of(right) for right in _texts(answers)))


def f1(said: str, answers: Sequence[Answer]) -> float:
    """The best overlap of words with a right answer, 0 to 1; without any, 1.0 when nothing is said.

    As of 2.0 (Rajpurkar et al. 2018): words that are both empty agree.
    """
    return max(_overlap(words_of(said), words_of(right)) for right in _texts(answers))


def _texts(answers: Sequence[Answer]) -> list[str]:
    """The answers that say something; one that says nothing where there is none."""
    return [answer.text for answer in answers if words_of(answer.text)] or [""]


def _overlap(said: Sequence[str], right: Sequence[str]) -> float:
    if not said or not right:
        return float(said == right)
    shared = sum((Counter(said) & Counter(right)).values())
    return 2.0 * shared / (len(said) + len(right))
