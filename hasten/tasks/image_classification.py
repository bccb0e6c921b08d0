"""Image classification: one label an image.

Top-1 accuracy is the metric (a mean over rows, so its drop is tested pairwise); macro F1 and, among more than five
classes, top-5 accuracy are reported beside it. All in points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hasten.records import Columns, InputError, Quality
from hasten.tasks.examples import Example
from hasten.tasks.image_rows import read_image_rows
from hasten.tasks.one_label import OneLabel, check_classes, truth
from hasten.tasks.rows import Rows
from hasten.tasks.task import Array, Item

_TOP = 5


@dataclass(frozen=True, slots=True)
class ImageClassification(OneLabel):
    """A label for each image."""

    name: str = "image-classification"
    head: str = "ForImageClassification"
    auto: str = "AutoModelForImageClassification"
    labelled: bool = True
    per_token: bool = False
    foretells: bool = False
    aliases: Mapping[str, str] = field(default_factory=dict)

    def read(self, source: str | Path, *, columns: Columns, labels_wanted: bool = True) -> Rows:
        return read_image_rows(source, columns=columns, labels_wanted=labels_wanted)

    def wrap(self, checkpoint: Any) -> Any:
        return self.wrap_model(checkpoint.model, pooling=None, normalize=False)

    def wrap_model(self, model: Any, *, pooling: str | None, normalize: bool) -> Any:
        del pooling, normalize
        from hasten.tasks.wrappers import ImageWrapper

        return ImageWrapper(model)

    def encode(self, processor: Any, item: Item) -> tuple[Example, ...]:
        """The item's ``image``: an encoded file's bytes, a path, a Pillow image or an array."""
        if item.get("image") is None:
            raise InputError(
                f"an item with {', '.join(sorted(item)) or 'nothing'} and no image",
                expected='{"image": ...}: a file\'s bytes, its path, or a Pillow image',
                remedy="give the image; texts are for --task text-classification",
            )
        return (processor.encode(item["image"], name=str(item.get("text") or "the image")),)

    def check(self, rows: Rows, labels: Sequence[str]) -> tuple[Rows, tuple[str, ...]]:
        if rows.images is None:
            raise InputError(
                f"{rows.source} holds texts", expected="images", remedy="use --task text-classification for texts"
            )
        return check_classes(rows, labels)

    def score(self, outputs: Array, rows: Rows, labels: Sequence[str], *, reference: Array | None) -> Quality:
        del reference
        from sklearn.metrics import f1_score

        right, guess = truth(rows, labels), outputs.argmax(axis=1)
        others = {"macro_f1": 100.0 * float(f1_score(right, guess, average="macro", zero_division=0))}
        if len(labels) > _TOP:
            best = np.argpartition(outputs, -_TOP, axis=1)[:, -_TOP:]
            others["top5_accuracy"] = 100.0 * float((best == right[:, None]).any(axis=1).mean())
        return Quality("accuracy", 100.0 * float(np.mean(right == guess)), len(right), others)
