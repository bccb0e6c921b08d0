"""Multiple choice by likelihood: which ending does a decoder find likeliest?

Every choice is read after its question; the sum of its tokens' log-probabilities decides (``accuracy``), or that sum
a byte of the choice (``accuracy_by_byte``, fairer to long ones). Of a question with a blank each choice is put into it,
and what stands behind it is scored (:mod:`hasten.tasks.choice_forms`). Accuracy is a mean over rows. PIQA's columns
(goal, sol1, sol2, label), COPA's, Winogrande's and the usual ones with a list of choices are known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hasten.records import Columns, InputError, Quality
from hasten.tasks.choice_forms import around_blank, cause_or_effect, is_of_causes, names_of
from hasten.tasks.examples import Example, stacked
from hasten.tasks.language_modeling import HEADS
from hasten.tasks.rows import Rows, content_hash
from hasten.tasks.tables import Table, read_table
from hasten.tasks.task import Array, Item, few_rows_warning

_QUESTION = ("goal", "question", "question_stem", "prompt", "ctx", "context", "text", "sentence")
# What questions of some collections (RACE's) cannot be answered without.
_READ_FIRST = ("premise", "article", "passage", "context", "support")
_CHOICES = ("choices", "endings", "options")
_NUMBERED = (
    ("sol1", "sol2"), ("choice1", "choice2"), ("option1", "option2"), ("ending0", "ending1", "ending2", "ending3"),
)  # fmt: skip
_LABEL = ("label", "answer", "gold", "answer_key", "answerKey")


@dataclass(frozen=True, slots=True)
class MultipleChoice:
    """Outputs are [N, 2, K]: of every choice the sum of log-probabilities and its bytes; 0 bytes where there is none.

    ``pairs`` of the rows hold the choices, a JSON list a row; ``labels`` the number of the right one.
    """

    name: str = "multiple-choice"
    head: tuple[str, ...] = HEADS
    auto: str = "AutoModelForCausalLM"
    labelled: bool = False
    per_token: bool = True
    foretells: bool = True
    aliases: Mapping[str, str] = field(
        default_factory=lambda: {"question": "text", "goal": "text", "prompt": "text", "choices": "text_pair"}
    )

    def read(self, source: str | Path, *, columns: Columns, labels_wanted: bool = True) -> Rows:
        table = read_table(source)
        if not table.rows:
            raise InputError(f"{source} holds no rows", expected="at least one question", remedy="give another file")
        question = _named(table, columns.text, _QUESTION, what="the question", flag="--text-column", source=source)
        causes = columns.text is None and question == "question" and is_of_causes(table.rows)
        beside = [name for name in _READ_FIRST if name in table.names and name != question and not causes]
        if columns.text is None and question == "question" and beside:
            raise InputError(
                f"{source} has a question and, to be read before it, {', '.join(beside)}",
                expected="one column with all that stands before the choices",
                remedy="put both into one column, or name the one that is enough with --text-column",
            )  # fmt: skip
        label = columns.label or next((n for n in _LABEL if n in table.names), None)
        if labels_wanted and (label is None or label not in table.names):
            raise InputError(
                f"{source} has the columns {', '.join(table.names)}; none says which choice is right",
                expected=f"a column such as {', '.join(_LABEL[:3])}", remedy="name it with --label-column",
            )  # fmt: skip
        texts, pairs, labels = [], [], []
        for number, given in enumerate(table.rows, start=1):
            row = cause_or_effect(given) if causes else given
            choices, names = _choices(row, columns.text_pair, label=label, at=f"row {number} of {source}")
            texts.append(_question(row.get(question), at=f"row {number} of {source}: column {question!r}"))
            pairs.append(json.dumps(choices, ensure_ascii=False))
            if labels_wanted and label is not None:
                labels.append(_right(row.get(label), choices, names, at=f"row {number} of {source}"))
        return Rows(
            texts=tuple(texts), pairs=tuple(pairs), labels=tuple(labels) if labels else None, source=str(source),
            sha256=content_hash(texts, pairs, labels), column_names=table.names,
        )  # fmt: skip

    def check(self, rows: Rows, labels: Sequence[str]) -> tuple[Rows, tuple[str, ...]]:
        del labels
        if rows.labels is None:
            raise InputError(f"{rows.source} has no label column", expected="the right choice of each row",
                             remedy="name it with --label-column")  # fmt: skip
        return rows, few_rows_warning(len(rows))

    def wrap(self, checkpoint: Any) -> Any:
        return self.wrap_model(checkpoint.model, pooling=None, normalize=False)

    def wrap_model(self, model: Any, *, pooling: str | None, normalize: bool) -> Any:
        del pooling, normalize
        from hasten.tasks.wrappers import NextTokenWrapper

        wrapper = NextTokenWrapper(model)
        wrapper.task = self.name
        return wrapper

    def encode(self, processor: Any, item: Item) -> tuple[Example, ...]:
        """One example a choice, ``fresh`` on the choice's tokens, with its bytes."""
        made, at = [], f"the question {item['text'][:40]!r}"
        around = around_blank(item["text"])
        for choice in _checked(_parsed(item["text_pair"], at=at), at=at):
            before, said = (item["text"], choice) if around is None else (around[0] + choice, around[1])
            example = processor.continued(before, _led(before, said) if around is None else said)
            size = np.array(len(said.encode("utf-8", "replace")), dtype=np.int64)
            made.append(replace(example, arrays={**example.arrays, "choice_bytes": size}))
        return tuple(made)

    def targets(self, rows: Rows, labels: Sequence[str], encoded: Sequence[Sequence[Example]]) -> list[Array] | None:
        """[L]: the right choice's tokens; of the wrong ones nothing is learnt."""
        del labels
        right = rows.labels or (None,) * len(rows)
        return [
            np.where((e.arrays["fresh"] > 0) & (number == wanted), e.arrays["input_ids"], -100)
            for row, wanted in zip(encoded, right, strict=True)
            for number, e in enumerate(row)
        ]

    def outputs(self, raw: Sequence[Array], encoded: Sequence[Sequence[Example]]) -> Array:
        made = iter(raw)
        rows = [[(_said(next(made), e), float(e.arrays["choice_bytes"])) for e in row] for row in encoded]
        return stacked([np.array(row, dtype=np.float64) for row in rows]).transpose(0, 2, 1)

    def comparable(self, outputs: Array) -> Array:
        return outputs[..., :1]

    def score(self, outputs: Array, rows: Rows, labels: Sequence[str], *, reference: Array | None) -> Quality:
        del labels, reference
        right = np.array(rows.labels)
        by_byte = 100.0 * float(np.mean(_best(outputs, by_byte=True) == right))
        accuracy = 100.0 * float(np.mean(_best(outputs) == right))
        return Quality("accuracy", accuracy, len(right), {"accuracy_by_byte": by_byte})

    def per_row(self, outputs: Array, rows: Rows, labels: Sequence[str], *, reference: Array | None) -> Array | None:
        del labels, reference
        return 100.0 * np.asarray(_best(outputs) == np.array(rows.labels), dtype=np.float64)

    def predictions(self, outputs: Array, rows: Rows, labels: Sequence[str]) -> tuple[list[str], list[str]] | None:
        del labels
        choices = [json.loads(pair) for pair in rows.pairs or ()]
        said = [own[int(i)] for own, i in zip(choices, _best(outputs), strict=True)]
        return said, [own[int(i)] for own, i in zip(choices, rows.labels or (), strict=True)]

    def decode(self, outputs: Array, rows: Rows, labels: Sequence[str]) -> list[Any]:
        """``{"choice", "text", "log_probabilities"}``."""
        del labels
        records = []
        for row, best, pair in zip(outputs, _best(outputs), rows.pairs or (), strict=True):
            choices = json.loads(pair)
            said = [float(x) for x in row[0][: len(choices)]]
            records.append({"choice": int(best), "text": choices[int(best)], "log_probabilities": said})
        return records


def _best(outputs: Array, *, by_byte: bool = False) -> Array:
    """The likeliest choice of each row [N]; what fills rows of fewer choices never is."""
    said, size = outputs[:, 0], outputs[:, 1]
    scores = np.where(size > 0, said / np.maximum(size, 1.0) if by_byte else said, -np.inf)
    found: Array = scores.argmax(axis=1)
    return found


def _said(raw: Array, example: Example) -> float:
    return float(raw[:-1, 0][example.arrays["fresh"][1:] > 0].sum(dtype=np.float64))


def _led(question: str, choice: str) -> str:
    """With the space between the two that running text has."""
    return choice if not question or question[-1].isspace() or choice[:1].isspace() else f" {choice}"


def _question(value: Any, *, at: str) -> str:
    """It may be empty: then the choices alone are compared."""
    if not isinstance(value, str):
        raise InputError(
            f"{at} holds {'nothing' if value is None else f'{type(value).__name__} {str(value)[:40]!r}'}",
            expected="a text in every row",
            remedy="fill or drop such rows, or name another column with --text-column",
        )
    return value


def _choices(row: Mapping[str, Any], column: str | None, *, label: str | None, at: str) -> tuple[list[str], list[str]]:
    """The choices, and what the row itself or its ``label`` calls each of them, if anything."""
    columns = next((n for n in _NUMBERED if all(name in row for name in n)), ())
    listed = next((n for n in ((column,) if column else _CHOICES) if n in row), None)
    found = row[listed] if listed is not None else [row[name] for name in columns]
    names: Any = names_of(columns, label=label) if listed is None else []
    if isinstance(found, str):
        found = _parsed(found, at=at)
    if isinstance(found, Mapping):  # ARC's form: {"text": [...], "label": [...]}, whose names are letters or 1 to 4
        found, names = found.get("text", []), found.get("label") or []
    choices = _checked(found, at=at)
    if names and (not isinstance(names, list) or len({str(name) for name in names}) != len(choices)):
        raise InputError(
            f"{at} calls its {len(choices)} choices {str(names)[:60]}", expected="another name for each",
            remedy="correct the row",
        )  # fmt: skip
    return choices, [str(name).strip() for name in names]


def _checked(found: Any, *, at: str) -> list[str]:
    if not isinstance(found, list) or len(found) < 2 or not all(isinstance(c, str) and c.strip() for c in found):
        raise InputError(
            f"{at} has the choices {str(found)[:60]}", expected="two texts or more, in a list or as sol1 and sol2",
            remedy="correct the row, or name their column with --text-pair-column",
        )  # fmt: skip
    return list(found)


def _parsed(text: str, *, at: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{at} has the choices {text[:60]!r}", expected="a JSON list of texts", remedy="correct the row"
        ) from error


def _right(value: Any, choices: Sequence[str], names: Sequence[str], *, at: str) -> int:
    """The choice's own text, what the row calls it, or else a number from 0 or a letter (A, B, ...)."""
    text = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()
    for known in (choices, names):
        if text in known:
            return list(known).index(text)
    found = {str(number): number for number in range(len(choices))} if not names else {}
    found |= {chr(ord("A") + number): number for number in range(min(len(choices), 26))}
    if text.upper() not in found:
        said = ", ".join(names) if names else f"0 to {len(choices) - 1}"
        raise InputError(
            f"{at} says that {str(value)[:40]!r} is right", expected=f"{said}, a letter, or one of the choices",
            remedy="correct the row, or name the right column with --label-column",
        )  # fmt: skip
    return found[text.upper()]


def _named(
    table: Table, given: str | None, usual: Sequence[str], *, what: str, flag: str, source: str | Path
) -> str:  # fmt: skip
    found = given if given in table.names else next((n for n in usual if n in table.names), None)
    if found is None or (given is not None and given not in table.names):
        raise InputError(
            f"{source} has the columns {', '.join(table.names)}; none holds {what}",
            expected=f"a column such as {', '.join(usual[:4])}", remedy=f"name it with {flag}",
        )  # fmt: skip
    return str(found)
