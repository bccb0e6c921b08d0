"""Text regression: one number per text or pair of texts, such as how alike two sentences are (STS-B).

The metric is Pearson's correlation in points, with Spearman's rank correlation, in points too, and the root mean
square error, in the labels' own unit, beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hasten.records import Columns, InputError, Quality
from hasten.tasks.examples import Example
from hasten.tasks.rows import Rows, read_rows
from hasten.tasks.task import Array, Item, few_rows_warning


@dataclass(frozen=True, slots=True)
class TextRegression:
    """Outputs are numbers, [N, 1]."""

    name: str = "text-regression"
    head: str = "ForSequenceClassification"
    auto: str = "AutoModelForSequenceClassification"
    labelled: bool = False
    per_token: bool = False
    foretells: bool = False
    aliases: Mapping[str, str] = field(default_factory=dict)

    def read(self, source: str | Path, *, columns: Columns, labels_wanted: bool = True) -> Rows:
        return read_rows(source, columns=columns, labels_wanted=labels_wanted)

    def wrap(self, checkpoint: Any) -> Any:
        return self.wrap_model(checkpoint.model, pooling=None, normalize=False)

    def wrap_model(self, model: Any, *, pooling: str | None, normalize: bool) -> Any:
        """Raises InputError for a model of several outputs: that is a classifier, saved under the same name."""
        del pooling, normalize
        from hasten.tasks.wrappers import ScoreWrapper

        if model.config.num_labels != 1:
            raise InputError(
                f"a model with {model.config.num_labels} outputs",
                expected="one output, a number",
                remedy="use the task text-classification for it",
            )
        return ScoreWrapper(model)

    def encode(self, processor: Any, item: Item) -> tuple[Example, ...]:
        return (processor.encode(item["text"], item.get("text_pair")),)

    def targets(self, rows: Rows, labels: Sequence[str], encoded: Sequence[Sequence[Example]]) -> list[Array] | None:
        """float32, one number a row."""
        del labels, encoded
        return None if rows.labels is None else list(np.array(rows.labels, dtype=np.float32))

    def outputs(self, raw: Sequence[Array], encoded: Sequence[Sequence[Example]]) -> Array:
        del encoded
        return np.stack(raw)

    def check(self, rows: Rows, labels: Sequence[str]) -> tuple[Rows, tuple[str, ...]]:
        del labels
        if rows.labels is None:
            raise InputError(
                f"{rows.source} has no label column (columns: {', '.join(rows.column_names)})",
                expected="a column with the right number of each row",
                remedy="name it with --label-column",
            )
        numbers = tuple(_number(value, where=f"row {i} of {rows.source}") for i, value in enumerate(rows.labels, 1))
        if len(set(numbers)) < 2:
            raise InputError(
                f"all {len(numbers)} rows of {rows.source} have the label {numbers[0]:g}",
                expected="numbers that differ",
                remedy="give a sample of the real mix: nothing correlates with one number",
            )
        return replace(rows, labels=numbers), few_rows_warning(len(numbers))

    def comparable(self, outputs: Array) -> Array:
        return outputs

    def score(self, outputs: Array, rows: Rows, labels: Sequence[str], *, reference: Array | None) -> Quality:
        """No correlation at all (0) where either side is constant."""
        del labels, reference
        from scipy.stats import pearsonr, spearmanr

        right, said = np.array(rows.labels, dtype=np.float64), outputs[:, 0].astype(np.float64)
        others = {"spearman": 0.0, "rmse": float(np.sqrt(np.mean((said - right) ** 2)))}
        if min(np.ptp(right), np.ptp(said)) == 0:
            return Quality("pearson", 0.0, len(right), others)
        others["spearman"] = 100.0 * float(spearmanr(said, right).statistic)
        return Quality("pearson", 100.0 * float(pearsonr(said, right).statistic), len(right), others)

    def per_row(self, outputs: Array, rows: Rows, labels: Sequence[str], *, reference: Array | None) -> Array | None:
        """A correlation is no mean of the rows'."""
        del outputs, rows, labels, reference
        return None

    def predictions(self, outputs: Array, rows: Rows, labels: Sequence[str]) -> tuple[list[str], list[str]] | None:
        """A number is no word: nearly every one changes a little."""
        del outputs, rows, labels
        return None

    def decode(self, outputs: Array, rows: Rows, labels: Sequence[str]) -> list[Any]:
        """``{"score"}``, the number."""
        del rows, labels
        return [{"score": float(number)} for number in outputs[:, 0]]


def _number(value: Any, *, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not np.isfinite(number):
        raise InputError(
            f"{where} has the label {str(value)[:40]!r}",
            expected="a finite number",
            remedy="correct or drop such rows, or name the right column with --label-column",
        )
    return number
