"""Banking77 for the benchmarks of passes: the checkpoint, rows to learn from, rows to stop on, rows to report.

Training rows teach; the test set is split in two halves, one that early stopping may ask, one that only reports.
Everything is seeded. Lies beside the checkout, not in it.
"""

from __future__ import annotations

import csv
import random
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import hasten
from hasten.passes.calibration import Calibration

SHARED = Path(__file__).parents[3] / "shared"
MODEL, DATA = SHARED / "models" / "minilm-banking77", SHARED / "data" / "banking77"


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


class Lesson:
    """The checkpoint and its rows on a workbench, with accuracies as plain numbers."""

    def __init__(self, seed: int = 0, model: Path = MODEL) -> None:
        with tempfile.TemporaryDirectory() as folder:
            files = {name: str(save(Path(folder) / f"{name}.csv", rows)) for name, rows in split_rows().items()}
            self.bench = hasten.workbench(
                model, task="text-classification", calibration_data=files["calibration"],
                selection_data=files["selection"], test_data=files["test"], seed=seed,
            )  # fmt: skip

    def model(self) -> Any:
        """A fresh wrapper of the original."""
        return self.bench.model()

    def calibration(self, **more: Any) -> Calibration:
        """What a pass sees; its state lies in a folder of its own."""
        found: Calibration = replace(self.bench.calibration(), state=Path(tempfile.mkdtemp()), **more)
        return found

    def accuracy(self, model: Any) -> float:
        """Per cent of the 1,540 test rows."""
        return self.bench.score(model).value

    def test_rows(self) -> tuple[list[dict[str, Any]], np.ndarray[Any, Any]]:
        """Token arrays [1, L] and class numbers [N]."""
        prepared, number = self.bench.prepared, {name: i for i, name in enumerate(self.bench.facts.labels)}
        labels = prepared.rows_of(prepared.test).labels or ()
        return prepared.batches(prepared.test, batch=1), np.array([number[str(label)] for label in labels])


def _key(text: str) -> str:
    return " ".join(text.casefold().split())


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))
