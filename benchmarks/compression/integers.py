"""Banking77 in int8 and int4: which way to the integers costs how much accuracy, on runtimes that really compute so.

Every row is the same fine-tuned model, changed by the passes named, exported, opened and run on rows that nothing has
seen. The shape of the table is that of Q8BERT and of the SmoothQuant paper: one way to quantize a row.
``integers.py "mixed precision"`` measures the ways of this name again, and leaves the others as they stand.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from banking import Lesson, require_material
from common import RESULTS, write

from hasten.passes import (
    PrecisionConfig,
    QatConfig,
    SmoothQuantConfig,
    ZeroQuantConfig,
    run_pass,
)
from hasten.records import Config, Rejected
from hasten.runtimes import get_runtime
from hasten.runtimes.onnxruntime import OnnxRuntimeConfig
from hasten.runtimes.openvino import OpenVinoConfig

_CALIBRATION = 256
_BOUND = 1e-4  # nats: with ten times as many nothing stays in fp32
_RESULT = RESULTS / "compression" / "integers.json"


def main(only: str = "") -> None:
    require_material()
    lesson = Lesson()
    dynamic, static = (
        OnnxRuntimeConfig(precision="int8-dynamic"),
        OnnxRuntimeConfig(precision="int8-static", fusion=False),
    )
    int4 = OnnxRuntimeConfig(precision="int4", fusion=False)
    per_tensor = OnnxRuntimeConfig(precision="int8-static", fusion=False, per_channel=False)
    ways: list[tuple[str, tuple[Config, ...], Any]] = [
        ("fp32", (), OnnxRuntimeConfig()),
        ("static, per tensor", (), per_tensor),
        ("static, per channel", (), static),
        ("static, percentile", (), OnnxRuntimeConfig(precision="int8-static", fusion=False, calibration="percentile")),
        ("static, entropy", (), OnnxRuntimeConfig(precision="int8-static", fusion=False, calibration="entropy")),
        ("SmoothQuant + static", (SmoothQuantConfig(),), static),
        ("mixed precision + static", (PrecisionConfig(bound=_BOUND),), static),
        ("QAT + static", (QatConfig(),), static),
        ("dynamic, per tensor", (), OnnxRuntimeConfig(precision="int8-dynamic", per_channel=False)),
        ("dynamic, per channel", (), dynamic),
        ("SmoothQuant + dynamic", (SmoothQuantConfig(),), dynamic),
        ("mixed precision + dynamic", (PrecisionConfig(bound=_BOUND),), dynamic),
        ("QAT + dynamic", (QatConfig(),), dynamic),
        ("OpenVINO static, SmoothQuant 0.95", (), OpenVinoConfig(precision="int8")),
        ("OpenVINO static, no smoothing", (), OpenVinoConfig(precision="int8", smooth_quant_alpha=-1.0)),
        ("int4 in groups of 32", (), int4),
        ("ZeroQuant int4 in groups of 32", (ZeroQuantConfig(bits=4, group=32),), int4),
        ("QAT int4 in groups of 32", (QatConfig(bits=4, group=32, activations="token"),), int4),
    ]
    stands = {row["way"]: row for row in json.loads(_RESULT.read_text())["rows"]} if only else {}
    rows = [measured(lesson, name, passes, runtime) if only in name else stands[name] for name, passes, runtime in ways]
    write(
        "compression/integers",
        "int8 static per tensor against dynamic, SmoothQuant, QAT and mixed precision: accuracy",
        {"original": lesson.accuracy(lesson.model()), "test_rows": 1540, "rows": rows},
    )


def measured(lesson: Lesson, name: str, passes: Sequence[Config], runtime: Any) -> dict[str, Any]:
    """Accuracy of one way on the test rows, from the runtime itself."""
    started, row = time.perf_counter(), {"way": name, "runtime": runtime.label}
    try:
        model = lesson.model()
        for config in passes:
            model = run_pass(model, config, lesson.calibration())
        row["accuracy"] = on_runtime(lesson, model, runtime)
        row["in_fp32"] = list(getattr(model.hf.config, "hasten_keep_fp32", None) or [])
    except Rejected as error:
        row["rejected"] = str(error)
    row["seconds"] = time.perf_counter() - started
    print(row, flush=True)
    return row


def on_runtime(lesson: Lesson, model: Any, runtime: Any) -> float:
    """Export, open, and count what is right, one row at a time as it is served."""
    calibration = [dict(row) for row in lesson.calibration().rows[:_CALIBRATION]]
    rows, labels = lesson.test_rows()
    with tempfile.TemporaryDirectory() as scratch:
        folder, cache = Path(scratch) / "model", Path(scratch) / "cache"
        folder.mkdir()
        cache.mkdir()
        room = get_runtime(runtime.kind)
        room.export(model, runtime, calibration=calibration, folder=folder, cache=cache)
        session = room.open(folder, runtime, threads=2, cores=(0, 1))
        found = np.array([session.run(dict(row)).argmax() for row in rows])
        session.close()
    return 100.0 * float((found == labels).mean())


if __name__ == "__main__":
    main(*sys.argv[1:])
