"""Banking77, three of MiniLM's six layers, taught back in every way there is: accuracy on unseen rows, and seconds of
a core.

``recovery.py 1``: so many epochs each, the same rows, one seed: differences below two points mean nothing. Learning
rates are the defaults of each pass, and not tuned for so short a training.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from banking import Lesson, require_material
from common import write

from hasten.passes import LayersConfig, configs, drop_layers, run_pass

LAYERS = 3
WAYS: list[tuple[str, str, dict[str, Any]]] = [
    ("logits and hidden states", "distill", {}),
    ("logits", "distill", {"hidden": 0.0}),
    ("logits, hidden states and relations", "distill", {"relations": 1.0}),
    ("the user's labels", "distill", {"logits": 0.0, "hidden": 0.0, "labels": 1.0}),
    ("logits and hidden states", "lora", {}),
    ("logits and hidden states", "qlora", {}),
    ("logits and hidden states", "prefix", {}),
]


def main(epochs: str = "1") -> None:
    require_material()
    lesson = Lesson()
    student = drop_layers(lesson.model(), LayersConfig(count=LAYERS), lesson.calibration())
    write(
        "compression/recovery",
        "three of six layers, taught back in every way: accuracy and seconds",
        {
            "original": lesson.accuracy(lesson.model()), "layers": LAYERS, "before": lesson.accuracy(student),
            "epochs": float(epochs), "test_rows": 1540,
            "rows": [taught(lesson, *way, epochs=float(epochs)) for way in WAYS],
        },
    )  # fmt: skip


def taught(lesson: Lesson, learns: str, kind: str, settings: dict[str, Any], *, epochs: float) -> dict[str, Any]:
    """A fresh student after one way."""
    model = drop_layers(lesson.model(), LayersConfig(count=LAYERS), lesson.calibration())
    config, started = configs([kind])[kind](epochs=epochs, **settings), time.process_time()
    model = run_pass(model, config, lesson.calibration())
    seconds = time.process_time() - started
    row = {"kind": kind, "learns": learns, "settings": settings, "seconds": seconds, "accuracy": lesson.accuracy(model)}
    print(row, flush=True)
    return row


if __name__ == "__main__":
    main(*sys.argv[1:2])
