"""What a pass has to say of its result stays with it, also when the result comes from the cache."""

from __future__ import annotations

from pathlib import Path

from conftest import save_rows, save_tiny_classifier

import hasten
from hasten.passes.distillation import DistillConfig
from hasten.passes.sensitivity import PrecisionConfig
from hasten.pipeline.compress import compressed
from hasten.records import Config


def test_notes_are_kept_with_what_was_made(tmp_path: Path) -> None:
    model = save_tiny_classifier(tmp_path / "model", layers=2)
    rows = save_rows(tmp_path / "rows.csv", model, count=200)
    bench = hasten.workbench(model, task="text-classification", data=rows)
    passes: tuple[Config, ...] = (DistillConfig(epochs=1.0), PrecisionConfig(bound=1e6))

    def notes(seconds: float) -> list[str]:
        said: list[str] = []
        compressed(
            bench.checkpoint, bench.prepared.task, passes, material=bench.material, cache=tmp_path / "cache",
            rehearse=None, notes=said, seconds=seconds,
        )  # fmt: skip
        return said

    first = notes(seconds=0.0)
    assert "stopped by the clock at step 0 of" in first[0]
    assert "nothing stays fp32" in first[1]
    assert notes(seconds=1e6) == first
