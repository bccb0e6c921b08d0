"""Banking77, every pass that does not train, once: accuracy on unseen rows, bytes on disk, seconds of a core.

One seed and one draw of rows: differences below two points mean nothing. The figures of the pages in
``docs/techniques`` come from here. Latency is not measured: that is what ``hasten optimize`` does.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from banking import Lesson, require_material
from common import write

from hasten.models.reshape import save_model
from hasten.passes import configs, run_pass

UNITS = ("fisher", "kprune", "gradient", "entropy", "magnitude_units", "random_units")
SPARSE = ("magnitude", "taylor", "wanda", "sparsegpt")
FEW_BITS = ("rtn", "hqq", "awq", "gptq")
Way = tuple[str, dict[str, Any]]
WAYS: list[Way] = [
    *(("layers", {"count": 3, "by": by}) for by in ("even", "influence", "loss")),
    *((kind, {"keep": keep}) for kind in UNITS for keep in (0.7, 0.5)),
    *(("fisher", {"keep": keep, "batch": 32}) for keep in (0.7, 0.5)),  # the paper's groups of rows
    *(("fisher", {"keep": 0.5, "batch": 32, "tune": False, "rearrange": rearrange}) for rearrange in (True, False)),
    ("kprune", {"keep": 0.5, "representation": 0.0}),
    *(("low_rank", {"keep": keep}) for keep in (0.7, 0.5)),
    *(("low_rank", {"keep": 0.5, "which": which}) for which in ("attention", "all")),
    ("narrow", {"keep": 0.5}),
    *((kind, {"sparsity": sparsity}) for kind in SPARSE for sparsity in (0.5, 0.7)),
    *((kind, {"sparsity": 0.5, "pattern": "2:4"}) for kind in SPARSE),
    ("smooth_quant", {}),
    ("zeroquant", {}),
    ("zeroquant", {"bits": 4, "group": 32}),
    ("gobo", {}),
    ("gobo", {"bits": 4, "embeddings": True}),
    *((kind, {"bits": bits, "group": 32}) for kind in FEW_BITS for bits in (4, 3, 2)),
    *(("rtn", {"bits": bits, "group": 32, "symmetric": False}) for bits in (3, 2)),
    ("rtn", {"bits": 2, "group": 32, "symmetric": False, "clip": True}),
    ("rtn", {"bits": 8, "group": None}),
    ("hqq", {"bits": 2, "group": 32, "rounds": 0}),
    ("awq", {"bits": 3, "group": 32, "clip": False}),
    ("gptq", {"bits": 2, "group": 32, "symmetric": False, "act_order": True}),
    ("rtn", {"bits": 4, "group": 32, "embeddings": True}),
    ("llm_int8", {}),
    ("half", {}),
    ("half", {"dtype": "fp16"}),
]


def main() -> None:
    require_material()
    lesson = Lesson()
    rows = [measured(lesson, kind, settings) for kind, settings in WAYS]
    original = lesson.model()
    write(
        "compression/techniques",
        "what does each pass cost and save by itself, before anything is learnt back?",
        {
            "original": {"accuracy": lesson.accuracy(original), "bytes": stored_bytes(original)},
            "test_rows": 1540,
            "rows": rows,
        },
    )


def measured(lesson: Lesson, kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    """One pass with its settings on a fresh copy of the original."""
    config, started = configs([kind])[kind](**settings), time.process_time()
    model = run_pass(lesson.model(), config, lesson.calibration())
    row = {
        "kind": kind, "settings": settings, "label": config.label, "seconds": time.process_time() - started,
        "accuracy": lesson.accuracy(model), "bytes": stored_bytes(model),
    }  # fmt: skip
    print(row, flush=True)
    return row


def stored_bytes(model: Any) -> int:
    """What ``save_model`` writes."""
    with tempfile.TemporaryDirectory() as folder:
        save_model(model.hf, Path(folder))
        return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
