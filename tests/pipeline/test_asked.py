"""One recipe in place of a search: read from a file, refused with what to do, built whatever is expected of it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from own_core import own_core

import hasten
from hasten.cli import cli
from hasten.ledger import read_rows
from hasten.passes.distillation import DistillConfig
from hasten.passes.gobo import GoboConfig
from hasten.passes.layers import LayersConfig
from hasten.pipeline.asked import read_asked
from hasten.pipeline.candidates import baseline_recipe, candidate_recipes
from hasten.pipeline.compression import Compression, may_train
from hasten.pipeline.request import Request, make_request
from hasten.records import Columns, InputError, Recipe
from hasten.runtimes.onnxruntime import OnnxRuntimeConfig
from hasten.runtimes.torch import TorchConfig

SHAPE = Recipe((LayersConfig(count=2), DistillConfig(epochs=0.5)), OnnxRuntimeConfig())


def asked(recipe: Any, **options: Any) -> Request:
    given: dict[str, Any] = {"budget": "quality_drop<=1%", "time": "9m", "recipe": recipe, **options}
    return make_request("m", task="text-classification", data="d.csv", out="out", columns=Columns(), **given)


def test_a_file_its_content_and_a_recipe_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(SHAPE.to_dict()))
    for given in (SHAPE, SHAPE.to_dict(), path, str(path)):
        assert read_asked(given) == SHAPE
        assert asked(given).run_key == asked(SHAPE).run_key
    assert asked(SHAPE).run_key != asked(None).run_key
    brief = {"passes": [{"kind": "layers", "count": 2}], "runtime": {"kind": "torch"}}
    assert read_asked(brief) == Recipe((LayersConfig(count=2),), TorchConfig())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is no object"),
        ("{}", "has nothing"),
        ('{"passes": []}', "has passes"),
        ('{"passes": {"kind": "layers"}, "runtime": {"kind": "torch"}}', "without a kind"),
        ('{"passes": ["layers"], "runtime": {"kind": "torch"}}', "without a kind: layers"),
        ('{"passes": [], "runtime": "torch"}', "without a kind"),
        (
            '{"passes": [{"kind": "lairs"}], "runtime": {"kind": "torch"}}',
            "(?s)part 'lairs'.*awq, .*did you mean layers",
        ),
        ('{"passes": [], "runtime": {"kind": "tensorflow"}}', "(?s)unknown recipe part.*onnxruntime"),
        ('{"passes": [{"kind": "layers", "count": 2, "deep": 1}], "runtime": {"kind": "torch"}}', "deep"),
        ('{"passes": [{"kind": "layers", "count": "two"}], "runtime": {"kind": "torch"}}', "count"),
        (
            '{"passes": [{"kind": "gobo"}, {"kind": "layers", "count": 2}], "runtime": {"kind": "torch"}}',
            "in the order",
        ),
    ],
)
def test_what_is_no_recipe_is_refused_with_what_to_do(content: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(content)
    with pytest.raises(InputError, match=says) as refused:
        asked(str(path))
    assert "expected" in str(refused.value)
    assert "to do:" in str(refused.value)


def test_a_file_that_is_not_there_and_a_search_beside_it_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "no.json", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            asked(path)
    for narrowing in ({"techniques": ("layers",)}, {"runtimes": ("torch",)}):
        with pytest.raises(InputError, match="--recipe with"):
            asked(SHAPE, **narrowing)


def test_it_is_all_that_is_tried_beside_the_original() -> None:
    first, *others = candidate_recipes(asked(SHAPE))
    assert first == SHAPE
    assert all(not r.passes and r.runtime.kind == "torch" and r != baseline_recipe() for r in others)
    with pytest.raises(InputError, match="is the original as it is"):
        candidate_recipes(asked(baseline_recipe()))
    assert may_train(asked(SHAPE))
    assert not may_train(asked(Recipe((), OnnxRuntimeConfig())))
    facts: Any = SimpleNamespace(layers=6, family="bert")
    found = Compression(asked(SHAPE), facts, 10_000, 8.0)
    assert found.recipes([]) == ()
    assert found.remarks() == ()


def test_the_command_line_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    found = CliRunner().invoke(
        cli, ["optimize", "m", "--task", "text-classification", "--data", "d", "--recipe", str(tmp_path / "no.json")]
    )
    assert isinstance(found.exception, InputError)


@pytest.mark.slow
@pytest.mark.usefixtures("short_duels")
@pytest.mark.parametrize(
    "recipe",
    [
        Recipe((LayersConfig(count=2), DistillConfig(epochs=0.5)), OnnxRuntimeConfig()),
        Recipe((GoboConfig(),), TorchConfig()),  # smaller, and no faster than the original
    ],
    ids=["taught", "stored"],
)
def test_it_is_built_measured_verified_and_written(recipe: Recipe, tiny: tuple[Path, Path], tmp_path: Path) -> None:
    model, rows = tiny
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(recipe.to_dict()))
    result = hasten.optimize(
        model, task="text-classification", data=rows, budget="quality_drop<=90%", time="100s", out=tmp_path / "out",
        recipe=path, cores=own_core(), max_rows=40, max_length=32,
    )  # fmt: skip
    trials = read_rows(tmp_path / "out" / "trials.jsonl").trials()
    own = [t for t in trials if t.recipe_id == recipe.id]
    assert [t.stage for t in own][:2] == ["preflight", "screen"], [t.reason for t in own]
    assert own[-1].stage == "final"
    made = [list(t.recipe["passes"]) for t in trials if t.recipe["passes"]]
    written = json.loads(path.read_text())
    whole = written["passes"]
    assert all(passes == whole[: len(passes)] for passes in made), "steps of the recipe, and nothing else"
    assert result.verdict.chosen is not None
    assert result.verdict.chosen.recipe_id == recipe.id
    assert result.outcome in ("met", "baseline_best")
    manifest = json.loads((tmp_path / "out" / "bundle" / "manifest.json").read_text())
    assert manifest["recipe"] == written
    with result.load() as bundle:
        assert set(bundle.predict(["w1 w2"])[0]) == {"label", "score", "scores"}
