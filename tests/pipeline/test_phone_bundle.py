"""The whole loop with ExecuTorch alone: a bundle that opens again and holds the file for a phone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from own_core import own_core
from task_models import save_task_model, save_task_rows

import hasten
from hasten.pipeline.candidates import candidate_recipes
from hasten.pipeline.request import DataFiles, Request
from hasten.records import Budget, Columns, ModelRef, Workload
from hasten.runtimes import ON_REQUEST, RUNTIMES


@pytest.mark.slow
@pytest.mark.usefixtures("short_duels")
def test_a_bundle_for_a_phone(tmp_path: Path) -> None:
    task = "image-classification"  # texts take minutes to lower: the runtime's own contract has them
    model = save_task_model(tmp_path / "model", task, num_hidden_layers=1)
    rows = save_task_rows(tmp_path, task)
    result = hasten.optimize(
        model, task=task, data=rows, budget="quality_drop<=60%", time="150s", out=tmp_path / "out", cores=own_core(),
        runtimes=("executorch",), techniques=("int4",), max_length=48,
    )  # fmt: skip
    tried = [t for t in result.run.trials if t.recipe["runtime"]["kind"] == "executorch"]
    assert {t.recipe["runtime"]["precision"] for t in tried if t.status == "ok"} == {"int4"}
    assert all("XNNPACK computes" in t.notes[0] for t in tried if t.status == "ok" and t.stage == "screen")
    assert result.outcome == "met", result
    assert result.bundle is not None
    assert (result.bundle / "model" / "model.pte").is_file()
    facts = json.loads((result.bundle / "model" / "model.json").read_text())
    assert facts["operators"]["xnnpack"] > 0
    with hasten.load(result.bundle) as bundle:
        assert bundle.precision == facts["precision"]
    assert hasten.check(result.bundle, data=rows, quality_tolerance=100.0, speed_tolerance=100.0).passed
    page = (tmp_path / "out" / "report.html").read_text()
    assert "XNNPACK computes" in page


def test_it_is_tried_only_where_it_is_named() -> None:
    request = Request(
        model=ModelRef("m"), task="text-classification", files=DataFiles(), columns=Columns(), budget=Budget((), ""),
        workload=Workload(), time_s=60.0, out=Path("out"),
    )  # fmt: skip
    usual = {recipe.runtime.kind for recipe in candidate_recipes(request)}
    named = {recipe.runtime.kind for recipe in candidate_recipes(replace(request, runtimes=("executorch",)))}
    assert "executorch" not in usual
    assert named == {"executorch", "torch"}
    assert set(RUNTIMES) > ON_REQUEST
