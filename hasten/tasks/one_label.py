"""Tasks with one label for each row, whatever the row is.

Takes logits and rows, gives what such tasks share: targets, accuracy row by row, records, and the data's labels in the
model's spelling.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hasten.records import InputError
from hasten.tasks.examples import Example
from hasten.tasks.rows import Rows
from hasten.tasks.task import Array, few_rows_warning


@dataclass(frozen=True, slots=True)
class OneLabel:
    """Outputs are logits [N, C] in the order of ``labels``."""

    def targets(self, rows: Rows, labels: Sequence[str], encoded: Sequence[Sequence[Example]]) -> list[Array] | None:
        del encoded
        return None if rows.labels is None else list(truth(rows, labels))

    def outputs(self, raw: Sequence[Array], encoded: Sequence[Sequence[Example]]) -> Array:
        del encoded
        return np.stack(raw)

    def comparable(self, outputs: Array) -> Array:
        return outputs

    def per_row(self, outputs: Array, rows: Rows, labels: Sequence[str], *, reference: Array | None) -> Array | None:
        del reference
        return 100.0 * np.asarray(truth(rows, labels) == outputs.argmax(axis=1), dtype=np.float64)

    def predictions(self, outputs: Array, rows: Rows, labels: Sequence[str]) -> tuple[list[str], list[str]] | None:
        return [labels[int(i)] for i in outputs.argmax(axis=1)], [str(label) for label in rows.labels or ()]

    def decode(self, outputs: Array, rows: Rows, labels: Sequence[str]) -> list[Any]:
        """``{"label", "score", "scores"}``: the best label, its probability, and all of them."""
        del rows
        return [best_label(row, labels) for row in shares(outputs)]


def shares(logits: Array) -> Array:
    """Softmax over the last axis, in float64."""
    shifted = np.asarray(logits, dtype=np.float64) - logits.max(axis=-1, keepdims=True)
    found: Array = np.exp(shifted) / np.exp(shifted).sum(axis=-1, keepdims=True)
    return found


def best_label(row: Array, labels: Sequence[str]) -> dict[str, Any]:
    """The record of one row's probabilities [C]."""
    best = int(row.argmax())
    scores = {name: float(p) for name, p in zip(labels, row, strict=True)}
    return {"label": labels[best], "score": float(row[best]), "scores": scores}


def check_classes(rows: Rows, labels: Sequence[str]) -> tuple[Rows, tuple[str, ...]]:
    """Rows with the data's labels mapped to the model's; raises InputError when that cannot be done or says nothing."""
    if rows.labels is None:
        raise InputError(
            f"{rows.source} has no label column (columns: {', '.join(rows.column_names)})",
            expected="a column with the right label of each row",
            remedy="name it with --label-column",
        )
    mapped = map_labels([str(x) for x in rows.labels], labels, source=rows.source)
    counts = Counter(mapped)
    if len(counts) < 2:
        raise InputError(
            f"all {len(mapped)} rows of {rows.source} have the label {next(iter(counts), None)!r}",
            expected="rows of at least two classes",
            remedy="give a sample of the real mix: accuracy on one class says nothing",
        )
    return replace(rows, labels=tuple(mapped)), few_rows_warning(len(mapped))


def map_labels(found: Sequence[str], known: Sequence[str], *, source: str) -> list[str]:
    """Each label in the model's own spelling.

    Tried in order: the same names; names that differ in case or spaces; class ids. Raises InputError
    listing the labels that the model does not know.
    """
    by_name = {name: name for name in known}
    folded = {_fold(name): name for name in known}
    by_id = {str(number): name for number, name in enumerate(known)}
    for table, key in ((by_name, str), (folded, _fold), (by_id, _whole)):
        mapped = [table.get(key(label)) for label in found]
        if all(name is not None for name in mapped):
            return [str(name) for name in mapped]
    unknown = sorted({label for label in found if _fold(label) not in folded})
    raise InputError(
        f"{source} has {len(unknown)} labels that the model does not know: {', '.join(u[:40] for u in unknown[:5])}",
        expected=f"the model's {len(known)} labels or their ids ({', '.join(known[:6])}{', ...' * (len(known) > 6)})",
        remedy="correct the labels, or name the right column with --label-column",
    )


def _fold(label: str) -> str:
    return " ".join(label.replace("_", " ").casefold().split())


def _whole(label: str) -> str:
    """``"1.0"`` (a float column) is the id 1."""
    return label[:-2] if label.endswith(".0") else label.strip()


def truth(rows: Rows, labels: Sequence[str]) -> Array:
    """Class numbers [N]."""
    position = {name: number for number, name in enumerate(labels)}
    return np.array([position[str(label)] for label in rows.labels or ()])
