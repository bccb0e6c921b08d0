"""Text classification: one label per text or pair of texts.

Accuracy is the metric (a mean over rows, so its drop is tested pairwise); macro F1 and
Matthews' correlation are reported beside it. All in points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hasten.records import Columns, Quality
from hasten.tasks.examples import Example
from hasten.tasks.one_label import OneLabel, check_classes, truth
from hasten.tasks.rows import Rows, read_rows
from hasten.tasks.task import Array, Item


@dataclass(frozen=True, slots=True)
class TextClassification(OneLabel):
    """A label for each text, or pair of texts."""

    name: str = "text-classification"
    head: str = "ForSequenceClassification"
    auto: str = "AutoModelForSequenceClassification"
    aliases: Mapping[str, str] = field(default_factory=dict)
    labelled: bool = True
    per_token: bool = False
    foretells: bool = False

    def read(self, source: str | Path, *, columns: Columns, labels_wanted: bool = True) -> Rows:
        return read_rows(source, columns=columns, labels_wanted=labels_wanted)

    def wrap(self, checkpoint: Any) -> Any:
        return self.wrap_model(checkpoint.model, pooling=None, normalize=False)

    def wrap_model(self, model: Any, *, pooling: str | None, normalize: bool) -> Any:
        del pooling, normalize
        from hasten.tasks.wrappers import LogitsWrapper

        return LogitsWrapper(model)

    def encode(self, processor: Any, item: Item) -> tuple[Example, ...]:
        return (processor.encode(item["text"], item.get("text_pair")),)

    def check(self, rows: Rows, labels: Sequence[str]) -> tuple[Rows, tuple[str, ...]]:
        return check_classes(rows, labels)

    def score(self, outputs: Array, rows: Rows, labels: Sequence[str], *, reference: Array | None) -> Quality:
        del reference
        from sklearn.metrics import f1_score, matthews_corrcoef

        right, guess = truth(rows, labels), outputs.argmax(axis=1)
        others = {
            "macro_f1": 100.0 * float(f1_score(right, guess, average="macro", zero_division=0)),
            "mcc": 100.0 * float(matthews_corrcoef(right, guess)),
        }
        return Quality("accuracy", 100.0 * float(np.mean(right == guess)), len(right), others)
