"""Banking77, heads and neurons pruned at 25, 40 and 50 % of the encoder's MACs: Fisher against simpler scores.

Accuracy on rows that nothing has seen, as pruned and after a distillation of so many minutes (``pruning.py 5``; with
``pruning.py 5 0.5`` at that budget alone, into a file of its own). Every method prunes the same fine-tuned model with
the same rows; random is drawn three times without distillation.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from banking import Lesson, require_material
from common import write

from hasten.passes import configs, run_pass
from hasten.passes.distillation import DistillConfig, distill

REMOVED = (0.25, 0.4, 0.5)
METHODS = ("fisher", "kprune", "gradient", "magnitude_units", "random_units", "entropy")
DISTILLED = ("fisher", "magnitude_units", "random_units", "entropy")
_MOST_EPOCHS = 20


def main(minutes: str = "5", *budgets: str) -> None:
    require_material()
    lesson = Lesson()
    original = lesson.accuracy(lesson.model())
    for removed in map(float, budgets or map(str, REMOVED)):
        draws = [pruned(lesson, "random_units", removed, draw=draw)[1] for draw in (1, 2)]
        write(
            f"compression/pruning_{100 * removed:.0f}",
            "Fisher pruning against magnitude, random and entropy, before and after distillation",
            {
                "original": original, "removed": removed, "minutes": float(minutes),
                "rows": at(lesson, removed, minutes=float(minutes)), "random_again": draws,
            },
        )  # fmt: skip


def at(lesson: Lesson, removed: float, *, minutes: float) -> list[dict[str, Any]]:
    """All methods at one budget."""
    found = []
    for method in METHODS:
        model, accuracy, seconds = pruned(lesson, method, removed)
        row = {"removed": removed, "method": method, "pruned": accuracy, "pruning_s": seconds}
        if method in DISTILLED:
            row |= distilled(lesson, model, minutes=minutes)
        found.append(row)
        print(row, flush=True)
    return found


def pruned(lesson: Lesson, method: str, removed: float, **settings: Any) -> tuple[Any, float, float]:
    """The pruned model, its accuracy, and how long it took."""
    started = time.perf_counter()
    config = configs([method])[method](keep=1.0 - removed, **settings)
    model = run_pass(lesson.model(), config, lesson.calibration())
    seconds = time.perf_counter() - started
    return model, lesson.accuracy(model), seconds


def distilled(lesson: Lesson, model: Any, *, minutes: float) -> dict[str, float]:
    """Accuracy after as many whole epochs as fit into the minutes, by a rehearsal."""
    one: list[float] = []
    distill(model, DistillConfig(epochs=1.0), lesson.calibration(rehearse=one.append))
    epochs = float(min(_MOST_EPOCHS, max(1, int(60 * minutes / one[0]))))
    started = time.perf_counter()
    taught = distill(model, DistillConfig(epochs=epochs, patience=_MOST_EPOCHS), lesson.calibration())
    return {"distilled": lesson.accuracy(taught), "epochs": epochs, "training_s": time.perf_counter() - started}


if __name__ == "__main__":
    main(*sys.argv[1:])
