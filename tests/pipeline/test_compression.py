"""Smaller shapes in the real loop: rehearsed, trained, chosen, bundled, shown step by step; and what keeps them out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import save_rows, save_tiny_classifier
from own_core import own_core

import hasten
from hasten.ledger import read_rows
from hasten.passes import configs as pass_configs
from hasten.pipeline.candidates import SEARCHED
from hasten.pipeline.compression import FEWEST_ROWS, Compression
from hasten.pipeline.jobs import CheckpointFacts
from hasten.pipeline.request import Request, make_request
from hasten.pipeline.shapes import depths
from hasten.records import Columns, Figures, Interval, Latency, Recipe, Trial
from hasten.runtimes import configs


def asked(**options: Any) -> Request:
    given: dict[str, Any] = {"budget": "quality_drop<=1%", "time": "40m", **options}
    return make_request("m", task="text-classification", data="d.csv", out="out", columns=Columns(), **given)


NAMES = ("input_ids", "attention_mask")
FACTS = CheckpointFacts("bert", ("a", "b"), "{}", {}, NAMES, 128, "0", None, 6, 72, 9216, 1000)


def configs_of(kind: str) -> Any:
    return pass_configs([kind])[kind]


def compression(rows: int = 10_000, ms: float = 8.0, **options: Any) -> Compression:
    return Compression(asked(**options), FACTS, rows, ms)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, None),
        ({"budget": ""}, "no bound on quality"),
        ({"budget": "", "techniques": ("layers",)}, None),
        ({"techniques": ("int8",)}, "names none"),
        ({"rows": FEWEST_ROWS - 1}, "rows to learn from"),
        ({"rows": FEWEST_ROWS - 1, "techniques": ("layers", "kprune")}, None),
        ({"rows": FEWEST_ROWS - 1, "techniques": ("kprune", "distill")}, None),
        ({"rows": FEWEST_ROWS - 1, "techniques": ("distill",)}, "rows to learn from"),
        ({"time": "20s"}, "too short to train"),
        ({"time": "20s", "techniques": ("gobo",)}, None),
    ],
)
def test_when_shapes_are_tried(options: dict[str, Any], reason: str | None) -> None:
    found = compression(**options).why_not()
    assert found is None if reason is None else reason in str(found)


def test_what_is_named_is_all_that_is_tried() -> None:
    kinds = {p.kind for shape in compression(techniques=("layers", "distill")).menu.shapes() for p in shape}
    assert kinds == {"layers", "distill"}
    assert {p.kind for shape in compression().menu.shapes() for p in shape} == {"layers", "kprune", "distill"}
    taught = compression(techniques=("layers", "lora", "progressive", "qat")).menu.shapes()
    ways = [["progressive"], ["lora"], ["progressive", "qat"], ["lora", "qat"]]
    assert [[p.kind for p in shape] for shape in taught[:4]] == [["layers", *way] for way in ways]
    sparse = compression(techniques=("fisher", "sparsegpt")).menu.shapes()
    assert [[p.kind for p in s] for s in sparse] == [["sparsegpt"], *[["fisher"], ["fisher", "sparsegpt"]] * 2]
    for kind in SEARCHED:
        shapes = compression(techniques=(kind,)).menu.shapes()
        assert shapes, kind
        assert all(kind in {p.kind for p in shape} for shape in shapes)
    assert depths(6) == [3, 2, 4, 1, 5, 6]
    assert depths(12) == [6, 4, 8, 2, 10, 12]


def screened(recipe: Recipe, *, drop: float) -> Trial:
    """A screen in full, 5 ms and twice as fast as the original."""
    figures = Figures(latency_ms=Latency(p50=5.0, p90=5.0, p95=5.0, p99=5.0, n=100), bytes=1000)
    return Trial(
        recipe=recipe.to_dict(), recipe_id=recipe.id, label=recipe.label, stage="screen", status="ok", elapsed_s=1.0,
        figures=figures, speedup=Interval(2.0, 1.9, 2.1), quality_drop_pt=Interval(drop, drop - 0.5, drop + 0.5),
    )  # fmt: skip


@pytest.mark.parametrize(("drop", "kinds"), [(0.9, []), (1.3, ["distill", "qat"]), (2.4, [])])
def test_a_shape_that_misses_by_little_is_taught_on(drop: float, kinds: list[str]) -> None:
    plain = Recipe(passes=(), runtime=configs()["onnxruntime"](precision="int8-dynamic"))
    shape = Recipe(passes=compression().menu.shapes()[0], runtime=plain.runtime)
    rows = [screened(plain, drop=0.0), screened(shape, drop=drop)]
    found = compression().recipes(rows)
    assert [r.passes[-1].kind for r in found if r.passes[:-1] == shape.passes and r.runtime == plain.runtime] == kinds


def test_more_time_trains_longer() -> None:
    assert 1 <= compression(time="10m").epochs() < compression(time="40m").epochs() <= 12


@pytest.mark.parametrize("rows", [10_000, 50_000, 1_000_000])
def test_more_data_than_time_is_trained_on_as_far_as_it_fits(rows: int) -> None:
    found = compression(rows=rows, ms=20.0, time="10m")
    epochs = found.epochs()
    assert 0 < epochs < 1
    assert 0.98 * 90.0 <= epochs * rows * 0.010 <= 90.0, "a seventh of the time"
    lessons = [p for shape in found.menu.shapes() for p in shape if p.kind == "distill"]
    assert lessons
    assert all(p.epochs == epochs for p in lessons)  # type: ignore[attr-defined]
    (said,) = found.remarks()
    assert f"{epochs * rows:,.0f} of {rows:,} rows" in said
    on_grid: Any = found.menu.qat()
    assert on_grid.epochs == epochs


def test_a_training_of_too_few_steps_is_none() -> None:
    slow = compression(rows=10_000, ms=200.0, time="10m")  # 90 rows in a seventh of the time
    assert slow.epochs() == 0
    reason = str(slow.why_not())
    needed_s = float(reason.rpartition("about ")[2].partition(" s")[0])
    assert compression(rows=10_000, ms=200.0, time=needed_s * 1.01).epochs() > 0
    assert compression(rows=10_000, ms=200.0, time=needed_s * 0.9).epochs() == 0


def test_what_is_left_out_is_said() -> None:
    assert compression().remarks() == ()
    assert compression(techniques=("int8",)).remarks() == ()
    (few,) = compression(rows=150).remarks()
    assert few == "no smaller shapes were tried: 150 rows to learn from, 200 are needed"
    (untaught,) = compression(rows=150, techniques=("kprune", "distill", "qat")).remarks()
    assert untaught == "distill and qat were not tried: 150 rows to learn from, 200 are needed"
    assert compression(rows=150, techniques=("kprune",)).remarks() == ()
    shallow = Compression(asked(techniques=("progressive",)), replace(FACTS, layers=2), 10_000, 8.0)
    assert shallow.remarks() == (
        "no smaller shapes were tried: progressive was not tried: a model of 2 layers leaves no room for an assistant "
        "between it and a student",
    )
    one = Compression(asked(techniques=("layers", "kprune")), replace(FACTS, layers=1), 10_000, 8.0)
    assert one.remarks() == ("layers was not tried: a model of 1 layer has none to spare",)
    assert {p.kind for shape in one.menu.shapes() for p in shape} == {"kprune"}


def test_only_shapes_that_torch_stores_go_to_torch() -> None:
    torch, onnx = configs()["torch"](), configs()["onnxruntime"](precision="int8-dynamic")
    plain = [Recipe(passes=(), runtime=torch), Recipe(passes=(), runtime=onnx)]
    rows = [screened(plain[0], drop=0.0), screened(plain[1], drop=0.0)]
    without = compression(techniques=("layers", "distill", "awq")).recipes(rows)
    found = compression(techniques=("layers", "distill", "awq", "gobo")).recipes(rows)
    assert set(without) <= set(found), "naming one more removes nothing"
    for recipe in found:
        kinds = {p.kind for p in recipe.passes}
        assert recipe.runtime == (torch if kinds & {"awq", "gobo"} else onnx), recipe.label
    assert {frozenset(p.kind for p in r.passes) for r in found} >= {
        frozenset({"layers", "distill"}), frozenset({"layers", "distill", "gobo"}), frozenset({"gobo"}),
    }  # fmt: skip
    (rounded,) = {p for r in found for p in r.passes if p.kind == "awq"}
    assert rounded == configs_of("awq")(), "not on the grid of a runtime that it does not go to"


def test_a_trained_shape_is_tried_on_the_other_runtimes_of_its_own_kind() -> None:
    torch, again = configs()["torch"](), configs()["torch"](attention="eager")
    onnx, fp32 = (configs()["onnxruntime"](precision=p) for p in ("int8-dynamic", "fp32"))
    rows = [screened(Recipe(passes=(), runtime=r), drop=0.0) for r in (torch, again, onnx, fp32)]
    menu = compression(techniques=("layers", "distill", "gobo"))
    shapes = menu.recipes(rows)
    stored = next(r for r in shapes if "gobo" in {p.kind for p in r.passes} and len(r.passes) == 3)
    other = next(r for r in shapes if "gobo" not in {p.kind for p in r.passes})
    for shape, kind in ((stored, "torch"), (other, "onnxruntime")):
        siblings = set(menu.recipes([*rows, screened(shape, drop=0.5)])) - set(shapes)
        assert siblings
        assert {r.runtime.kind for r in siblings if r.passes == shape.passes} == {kind}


@pytest.mark.slow
@pytest.mark.usefixtures("short_duels")
def test_a_smaller_shape_is_trained_and_becomes_the_bundle(tmp_path: Path) -> None:
    model = save_tiny_classifier(tmp_path / "model", layers=3)
    rows = save_rows(tmp_path / "rows.csv", model, count=1100)
    result = hasten.optimize(
        model, task="text-classification", data=rows, budget="quality_drop<=45%", time="150s", out=tmp_path / "out",
        runtimes=("onnxruntime",), cores=own_core(), techniques=("fusion", "layers", "distill"), max_rows=60,
        max_length=32,
    )  # fmt: skip
    trials = read_rows(tmp_path / "out" / "trials.jsonl").trials()
    shaped = [t for t in trials if t.recipe["passes"] and t.status == "ok"]
    assert {t.stage for t in shaped} >= {"preflight", "screen"}, [t.reason for t in trials]
    assert all(t.prediction is not None for t in shaped if t.stage == "preflight")
    assert result.outcome == "met", result
    assert result.verdict.chosen is not None
    chosen = result.verdict.chosen.recipe["passes"]
    assert [p["kind"] for p in chosen] == ["layers", "distill"]
    with result.load() as bundle:
        assert set(bundle.predict(["w1 w2"])[0]) == {"label", "score", "scores"}
    page = result.report.read_text()
    assert "+ distilled" in page
    told = json.loads((tmp_path / "out" / "verdict.json").read_text())["steps"]
    assert any(line.startswith("+ distilled") and "took" in line for line in told), told
    assert json.loads((tmp_path / "out" / "bundle" / "manifest.json").read_text())["recipe"]["passes"] == chosen
