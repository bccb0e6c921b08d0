"""Banking77 for the benchmarks of passes: the checkpoint, rows to learn from, rows to stop on, rows to report.

Training rows teach; the test set is split in two halves, one that early stopping may ask, one that only reports.
Everything is seeded. Lies beside the checkout, not in it.
"""

from __future__ import annotations

import copy
import csv
import random
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hasten.models.load import load_checkpoint
from hasten.passes.calibration import Calibration, padded
from hasten.records import ModelRef
from hasten.tasks import get_task
from hasten.tasks.tokenize import Tokenizer, encode_rows, pad_batch

SHARED = Path(__file__).parents[3] / "shared"
MODEL, DATA = SHARED / "models" / "minilm-banking77", SHARED / "data" / "banking77"
_NAMES = ("input_ids", "attention_mask", "token_type_ids")
_BATCH = 64


def require_material() -> None:
    """End with a sentence where checkpoint or data are absent."""
    if not (MODEL.is_dir() and DATA.is_dir()):
        sys.exit(f"{SHARED} holds neither model nor data: nothing to measure")


def split_rows() -> dict[str, list[dict[str, str]]]:
    """``calibration``, ``selection`` and ``test``; texts that occur in both sets or twice are dropped."""
    train, test = ({_key(r["text"]): r for r in _read(DATA / f"{name}.csv")} for name in ("train", "test"))
    held = list(test.values())
    random.Random(0).shuffle(held)
    return {
        "calibration": [r for k, r in train.items() if k not in test],
        "selection": held[: len(held) // 2],
        "test": held[len(held) // 2 :],
    }


def save(path: Path, rows: list[dict[str, str]]) -> Path:
    """The rows as CSV."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["text", "category"])
        writer.writeheader()
        writer.writerows(rows)
    return path


@dataclass(frozen=True)
class Lesson:
    """``limit`` of the calibration rows, all by default."""

    limit: int | None = None
    seed: int = 0

    @cached_property
    def checkpoint(self) -> Any:
        return load_checkpoint(ModelRef(str(MODEL)), task="text-classification")

    def model(self) -> Any:
        """A fresh wrapper of the original."""
        task = get_task("text-classification")
        return task.wrap(replace(self.checkpoint, model=copy.deepcopy(self.checkpoint.model))).eval()

    def calibration(self, **more: Any) -> Calibration:
        """What a pass sees; its state lies in a folder of its own."""
        rows, labels = self._tokens["calibration"]
        return Calibration(
            rows[: self.limit], labels=labels[: self.limit], original=self.model(), seed=self.seed,
            tokenizer_json=self.checkpoint.tokenizer_json, state=Path(tempfile.mkdtemp()),
            validate=lambda model: self.accuracy(model, "selection"), **more,
        )  # fmt: skip

    def accuracy(self, model: Any, part: str = "test") -> float:
        """Per cent of the rows of ``part``, 1,540 for selection and test."""
        rows, labels = self.rows(part)
        order = sorted(range(len(rows)), key=lambda i: rows[i]["input_ids"].shape[1])
        right = 0
        with torch.inference_mode():
            for start in range(0, len(order), _BATCH):
                some = order[start : start + _BATCH]
                found = model(**padded([rows[i] for i in some])).argmax(dim=1).numpy()
                right += int((found == labels[some]).sum())
        return 100.0 * right / len(rows)

    def rows(self, part: str) -> tuple[list[dict[str, Any]], np.ndarray[Any, Any]]:
        """Token arrays [1, L] and class numbers [N] of a part."""
        return self._tokens[part]

    @cached_property
    def _tokens(self) -> dict[str, tuple[list[dict[str, Any]], np.ndarray[Any, Any]]]:
        tokenizer = Tokenizer(self.checkpoint.tokenizer_json, max_length=self.checkpoint.max_length)
        number = {name: i for i, name in enumerate(self.checkpoint.labels)}
        made = {}
        for part, rows in split_rows().items():
            encoded = encode_rows(tokenizer, [r["text"] for r in rows], None, apart=False)
            made[part] = (
                [pad_batch([e], _NAMES) for e in encoded],
                np.array([number[r["category"]] for r in rows]),
            )
        return made


def _key(text: str) -> str:
    return " ".join(text.casefold().split())


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))
