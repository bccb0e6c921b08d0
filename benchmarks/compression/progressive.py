"""Banking77, a student of less than a quarter of the parameters: taught by the original, or by way of assistants?

The student is narrow and shallow, so that the word embeddings shrink too. Both ways take the same number of steps in
all (``progressive.py 12`` epochs), on the same rows with the same seed; a second seed says how much chance is in it
(``progressive.py 12 0`` leaves it out). What is measured is written after each training.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from banking import Lesson, require_material
from common import write

from hasten.passes import (
    DistillConfig,
    LayersConfig,
    NarrowConfig,
    ProgressiveConfig,
    distill,
    distill_progressively,
    drop_layers,
    narrow,
)

SEEDS = (0, 1)


def main(epochs: str = "12", *seeds: str) -> None:
    require_material()
    lesson = Lesson()
    whole, rows = {"original": lesson.accuracy(lesson.model()), "parameters": parameters(lesson.model())}, []
    for row in (row for seed in map(int, seeds or SEEDS) for row in both_ways(seed, float(epochs))):
        rows.append(row)
        write(
            "compression/progressive",
            "progressive against direct distillation to a student of <= 1/4 of the parameters, same total steps",
            {**whole, "rows": rows},
        )


def both_ways(seed: int, epochs: float) -> Iterator[dict[str, Any]]:
    """The same student, taught directly and progressively."""
    lesson = Lesson(seed=seed)
    same: dict[str, Any] = {"epochs": epochs, "lr": 1e-3, "embeddings": True, "patience": 100}
    ways = {
        "direct": (distill, DistillConfig(**same)),
        "via 4 layers": (distill_progressively, ProgressiveConfig(assistants=(4,), **same)),
        "via 5, 4 layers": (distill_progressively, ProgressiveConfig(assistants=(5, 4), **same)),
    }
    for name, (teach, config) in ways.items():
        model = student(lesson)
        started, before = time.perf_counter(), lesson.accuracy(model)
        taught = teach(model, config, lesson.calibration())
        row = {
            "way": name, "seed": seed, "epochs": epochs, "parameters": parameters(taught), "before": before,
            "after": lesson.accuracy(taught), "training_s": time.perf_counter() - started,
        }  # fmt: skip
        print(row, flush=True)
        yield row


def student(lesson: Lesson) -> Any:
    """Three layers, a third of the width."""
    shallow = drop_layers(lesson.model(), LayersConfig(count=3), lesson.calibration())
    return narrow(shallow, NarrowConfig(keep=1 / 3), lesson.calibration())


def parameters(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


if __name__ == "__main__":
    main(*sys.argv[1:])
