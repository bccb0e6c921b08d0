"""Passes of a recipe share the time: rows are cut and it is said, trainings leave some to what follows them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import save_rows, save_tiny_classifier
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

import hasten
from hasten import passes
from hasten.passes.calibration import Progress
from hasten.passes.distillation import DistillConfig
from hasten.passes.kprune import KPruneConfig
from hasten.passes.sensitivity import PrecisionConfig
from hasten.pipeline.compress import compressed
from hasten.pipeline.pacing import ROWS_CUT, paced
from hasten.records import Config, Rejected

LAYERS = 2
KPRUNE = KPruneConfig(round_to=8)
Slow = Callable[[float], "Clock"]


class Clock:
    """Moved by layers of a BERT alone: ``row_s`` for a row's forward pass."""

    def __init__(self, row_s: float) -> None:
        self.now, self.row_s = 50.0, row_s

    def moved(self, module: nn.Module, inputs: Any, _output: Any) -> None:
        if type(module).__name__ == "BertLayer":
            self.now += self.row_s / LAYERS * len(inputs[0])


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Any:
    hooks = []

    def make(row_s: float) -> Clock:
        clock = Clock(row_s)
        monkeypatch.setattr(time, "monotonic", lambda: clock.now)
        hooks.append(register_module_forward_hook(clock.moved))
        return clock

    yield make
    for hook in hooks:
        hook.remove()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("bench")
    model = save_tiny_classifier(folder / "model", layers=LAYERS)
    return hasten.workbench(model, task="text-classification", data=save_rows(folder / "rows.csv", model, count=800))


def compress(bench: Any, recipe: tuple[Config, ...], cache: Path, *, seconds: float) -> tuple[Any, list[str]]:
    notes: list[str] = []
    made = compressed(
        bench.checkpoint, bench.prepared.task, recipe, material=bench.material, cache=cache, rehearse=None,
        notes=notes, seconds=seconds,
    )  # fmt: skip
    return made, notes


def test_a_slow_model_is_pruned_on_fewer_rows_and_says_so(bench: Any, slow: Slow, tmp_path: Path) -> None:
    clock = slow(0.02)
    rows = len(bench.material.rows)
    whole_s = (4 * LAYERS + 5) * rows * clock.row_s
    started = clock.now
    _, notes = compress(bench, (KPRUNE,), tmp_path / "cut", seconds=0.61 * 10 * whole_s)
    assert 0.2 * whole_s < clock.now - started < 0.7 * whole_s
    (note,) = notes
    assert ROWS_CUT in note
    assert f"{int(0.61 * rows)} of {rows}" in note
    assert "(predicted)" in note
    assert compress(bench, (KPRUNE,), tmp_path / "cut", seconds=1e6)[1] == notes, "what is kept says it, too"
    assert compress(bench, (KPRUNE,), tmp_path / "whole", seconds=1e6)[1] == []


def test_a_pass_without_a_chance_is_refused_within_seconds(bench: Any, slow: Slow, tmp_path: Path) -> None:
    clock = slow(5.0)
    started = clock.now
    with pytest.raises(Rejected, match="64 rows, and there are 60 s; give more --time"):
        compress(bench, (KPRUNE,), tmp_path, seconds=60.0)
    assert clock.now - started <= 3 * clock.row_s, "three rows were looked at"


def test_a_pass_that_takes_longer_than_predicted_is_given_up(
    bench: Any, slow: Slow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = slow(0.05)
    started = clock.now
    look = "hasten.passes.pace.forward_s"
    monkeypatch.setattr(look, lambda *_given, **_more: 1e-6)
    with pytest.raises(Rejected, match="given up after"):
        compress(bench, (KPRUNE,), tmp_path, seconds=20.0)
    assert clock.now - started <= 10 + 32 * clock.row_s, "the first seconds, and a batch"


def test_a_training_leaves_a_share_to_what_comes_after_it(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, float] = {}

    def noted(wrapper: Any, config: Config, given: Any) -> Any:
        seen[config.kind] = given.deadline
        return wrapper

    monkeypatch.setattr(passes, "run_pass", noted)
    recipe: tuple[Config, ...] = (DistillConfig(), PrecisionConfig())
    given = replace(bench.calibration(), deadline=1000.0)
    paced(bench.model(), recipe, 0, given, seconds=600.0)
    paced(bench.model(), recipe[:1], 0, replace(given, deadline=math.inf), seconds=math.inf)
    assert seen == {"distill": math.inf}
    paced(bench.model(), recipe, 0, given, seconds=600.0)
    assert seen == {"distill": 1000.0 - 60.0}


def test_numbers_are_chosen_even_when_the_training_took_it_all(bench: Any, slow: Slow) -> None:
    clock = slow(1e-5)
    said: list[Progress] = []
    given = replace(bench.calibration(), deadline=clock.now - 5.0, listen=said.append)
    made = paced(bench.model(), (DistillConfig(), PrecisionConfig(bound=1e6)), 1, given, seconds=100.0)
    assert made.hf.config.hasten_keep_fp32 == []
    assert any("nothing stays fp32" in progress.what for progress in said)
