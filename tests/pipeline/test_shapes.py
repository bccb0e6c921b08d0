"""Which shapes are tried: measured unit costs, training on the right grid, passes that exclude each other."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten import passes
from hasten.ledger import Ledger
from hasten.passes import check_order, configs
from hasten.pipeline.compression import best_runtimes
from hasten.pipeline.request import make_request
from hasten.pipeline.shapes import Menu
from hasten.pipeline.unit_costs import measure_costs, stored_costs
from hasten.records import Columns, Figures, InputError, Interval, Latency, MissingDependency, Recipe, Stage, Trial
from hasten.runtimes.onnxruntime import OnnxRuntimeConfig
from hasten.runtimes.torch import TorchConfig

HEADS, NEURONS = 6 * 7, 6 * 1000  # neither a multiple of four nor of 32 a layer


class Timed:
    """A runner on a host where a head takes ``head`` ms and a neuron ``neuron`` ms."""

    def __init__(self, folder: Path, head: float, neuron: float) -> None:
        self.space = SimpleNamespace(ledger=Ledger.open(folder / "trials.jsonl", run_key="k", header={}))
        self.facts = SimpleNamespace(layers=6, heads=HEADS, neurons=NEURONS)
        self.full: Any = object()
        self.builds = SimpleNamespace(left_s=lambda: 60.0)
        self.head, self.neuron, self.calls = head, neuron, 0

    def run(self, recipe: Recipe, stage: Stage) -> Trial:
        self.calls += 1
        cut: Any = recipe.passes[0]
        heads = 6 * round(HEADS / 6 * cut.keep) if cut.which == "heads" else HEADS
        neurons = 6 * 32 * round(NEURONS / 6 * cut.keep / 32) if cut.which == "neurons" else NEURONS
        p50 = 0.3 + heads * self.head + neurons * self.neuron
        return Trial(
            recipe=recipe.to_dict(), recipe_id=recipe.id, label=recipe.label, stage=stage, status="ok", elapsed_s=1.0,
            figures=Figures(latency_ms=Latency(p50=p50, p90=p50, p95=p50, p99=p50, n=50)),
        )  # fmt: skip


def test_a_setting_read_back_is_the_same_recipe() -> None:
    """12 epochs and 12.0: two ids would train twice and lose the step in the report."""
    made = [Recipe(passes=(configs()["distill"](epochs=e),), runtime=TorchConfig()) for e in (12, 12.0)]
    assert made[0].id == made[1].id
    assert json.dumps(made[0].to_dict()) == json.dumps(made[1].to_dict())


def test_an_ill_typed_setting_is_no_recipe() -> None:
    with pytest.raises(InputError, match="patience"):
        Recipe(passes=(configs()["distill"](patience=2.5),), runtime=TorchConfig()).to_dict()


def test_the_slope_is_the_cost_and_is_measured_once(tmp_path: Path) -> None:
    runner: Any = Timed(tmp_path, 0.01, 0.0002)
    runtime = OnnxRuntimeConfig()
    assert measure_costs(runner, runtime) == pytest.approx((0.01, 0.0002))
    assert runner.calls == 4
    assert measure_costs(runner, runtime) == pytest.approx((0.01, 0.0002))
    assert runner.calls == 4
    assert stored_costs(runner.space.ledger.rows.rows, OnnxRuntimeConfig(precision="int8-dynamic")) is None


def test_costs_are_measured_within_the_time_and_otherwise_not_known(tmp_path: Path) -> None:
    runner: Any = Timed(tmp_path, 0.01, 0.0002)
    runner.builds.left_s = lambda: 2 - runner.calls
    assert measure_costs(runner, OnnxRuntimeConfig()) is None
    assert runner.calls == 2
    runner.builds.left_s = lambda: 60.0
    assert measure_costs(runner, OnnxRuntimeConfig()) == pytest.approx((0.01, 0.0002)), "with more time they are"


def test_layers_of_two_heads_have_no_slope(tmp_path: Path) -> None:
    runner: Any = Timed(tmp_path, 0.01, 0.0002)
    runner.facts = SimpleNamespace(layers=2, heads=4, neurons=128)
    assert measure_costs(runner, OnnxRuntimeConfig()) is None


def test_what_saves_nothing_gives_no_cost(tmp_path: Path) -> None:
    runner: Any = Timed(tmp_path, 0.01, -0.0001)
    assert measure_costs(runner, OnnxRuntimeConfig()) is None
    assert stored_costs(runner.space.ledger.rows.rows, OnnxRuntimeConfig()) is None
    calls = runner.calls
    assert measure_costs(runner, OnnxRuntimeConfig()) is None
    assert runner.calls == calls, "and is not measured again"
    runner.full = None
    assert measure_costs(runner, OnnxRuntimeConfig(fusion=False)) is None
    assert runner.calls == calls


def test_fisher_gets_the_measured_costs() -> None:
    timed = [p for shape in Menu(("fisher",), 6, 3, (0.01, 0.0002)).shapes() for p in shape if p.kind == "fisher"]
    plain = [p for shape in Menu(("fisher",), 6, 3).shapes() for p in shape if p.kind == "fisher"]
    assert timed
    assert all(p.unit_costs == (0.01, 0.0002) for p in timed)  # type: ignore[attr-defined]
    assert all(p.unit_costs is None for p in plain)  # type: ignore[attr-defined]


def test_training_on_the_grid_follows_the_runtime() -> None:
    def qat(menu: Menu) -> Any:
        return next(p for shape in menu.shapes() for p in shape if p.kind == "qat")

    assert (qat(Menu(("qat",), 6, 3)).bits, qat(Menu(("qat",), 6, 3)).group) == (8, None)
    assert (qat(Menu(("qat",), 6, 3, grid=(4, 64))).bits, qat(Menu(("qat",), 6, 3, grid=(4, 64))).group) == (4, 64)


def test_rounding_on_a_symmetric_grid_follows_the_runtime() -> None:
    def numbers(kind: str, grid: tuple[int, int | None] | None) -> tuple[int, int | None]:
        found: Any = Menu((kind,), 6, 3, grid=grid).shapes()[0][0]
        return found.bits, found.group

    for kind in ("rtn", "awq", "gptq"):
        assert numbers(kind, (4, 32)) == (4, 32)
        assert numbers(kind, (8, None)) == (8, None)
        assert numbers(kind, None) == (4, 64)
    assert numbers("zeroquant", (4, 32)) == (4, 32)
    assert numbers("zeroquant", (8, None)) == (8, 64)
    assert numbers("hqq", (4, 32)) == (4, 64), "its grid lies elsewhere"


def test_passes_that_undo_each_other_are_alternatives() -> None:
    def kinds(*named: str) -> list[list[str]]:
        return [[p.kind for p in shape] for shape in Menu(named, 6, 3).shapes()]

    assert kinds("magnitude", "wanda", "smooth_quant") == [
        ["smooth_quant"], ["magnitude", "smooth_quant"], ["wanda", "smooth_quant"],
    ]  # fmt: skip
    assert kinds("qat", "gobo", "smooth_quant", "mixed_precision") == [
        ["smooth_quant", "mixed_precision"], ["smooth_quant", "gobo", "mixed_precision"],
        ["qat"], ["qat", "mixed_precision"],
    ]  # fmt: skip
    for shape in Menu(("layers", "distill", "qat", "sparsegpt", "zeroquant", "gobo", "smooth_quant"), 6, 3).shapes():
        check_order(shape)


@pytest.mark.parametrize(
    "kinds", [("magnitude", "gobo"), ("gptq", "rtn"), ("qat", "zeroquant"), ("qat", "smooth_quant")]
)
def test_a_recipe_that_undoes_itself_is_refused(kinds: tuple[str, str]) -> None:
    with pytest.raises(InputError, match="in one recipe"):
        check_order([configs([kind])[kind]() for kind in kinds])


def test_what_only_torch_stores_is_tried_on_torch() -> None:
    def rows(**speedups: float) -> list[Trial]:
        made = {"torch": TorchConfig(), "ort": OnnxRuntimeConfig()}
        recipes = {k: Recipe(passes=(), runtime=made[k]) for k in speedups}
        return [
            Trial(
                recipe=r.to_dict(), recipe_id=r.id, label=r.label, stage="screen", status="ok", elapsed_s=1.0,
                speedup=Interval(speedups[k], speedups[k], speedups[k]),
            )
            for k, r in recipes.items()
        ]  # fmt: skip

    def chosen(trials: list[Trial], *, stored: bool = False) -> list[str]:
        asked = make_request(
            "m", task="text-classification", data="d.csv", out="out", columns=Columns(), budget="", time="9m",
        )  # fmt: skip
        return [config.kind for config in best_runtimes(trials, asked, stored=stored)]

    assert chosen(rows(torch=1.0, ort=4.0)) == ["onnxruntime"]
    assert chosen(rows(torch=1.0, ort=4.0), stored=True) == ["torch"]
    assert chosen(rows(torch=1.0)) == ["torch"]
    assert chosen(rows(ort=4.0), stored=True) == []


STRUCTURES = ("layers", "fisher", "kprune", "low_rank")
RECOVERIES = ("distill", "progressive", "lora", "qat")
NUMBERS = ("smooth_quant", "zeroquant", "mixed_precision", "gobo", "awq")


@settings(max_examples=40, deadline=None)
@given(st.sets(st.sampled_from((*STRUCTURES, *RECOVERIES, *NUMBERS))), st.sampled_from(NUMBERS), st.integers(1, 12))
def test_naming_numbers_as_well_removes_no_shape(named: set[str], more: str, layers: int) -> None:
    before = Menu(tuple(named), layers, 3.0).shapes() if named else []
    after = Menu((*named, more), layers, 3.0).shapes()
    kept = {shape for shape in before if {p.kind for p in shape} <= set(STRUCTURES) | set(RECOVERIES)}
    assert kept <= set(after)
    assert any(more in {p.kind for p in shape} for shape in after) or ("qat" in named and more == "smooth_quant")
    assert len(set(after)) == len(after)
    for shape in after:
        check_order(shape)


@settings(max_examples=40, deadline=None)
@given(st.sets(st.sampled_from((*STRUCTURES, *RECOVERIES, *NUMBERS)), min_size=1), st.integers(1, 12))
def test_every_named_pass_is_in_a_shape_or_it_is_said_why_not(named: set[str], layers: int) -> None:
    for epochs in (0.0, 0.2, 3.0):
        menu = Menu(tuple(named), layers, epochs)
        used = {p.kind for shape in menu.shapes() for p in shape}
        missing = {kind for kind in named - used if epochs or kind not in RECOVERIES}
        assert {said.partition(" ")[0] for said in menu.misfits()} == missing
        assert epochs or not used & set(RECOVERIES)
        assert used <= named | {"layers"}


def test_a_pass_without_its_library_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "find_spec", lambda name: None if name == "bitsandbytes" else name)
    passes.check_installed(["lora", "layers"])
    with pytest.raises(MissingDependency, match=r"pip install 'hasten\[peft\]'"):
        passes.check_installed(["layers", "qlora"])
