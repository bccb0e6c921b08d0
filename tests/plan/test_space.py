"""Recipes: one per config, narrowed by names that must be known."""

from __future__ import annotations

import pytest
from made_trials import MadeOnnx, MadeOpenVino, MadeTorch

from hasten.plan.space import TECHNIQUES, recipes
from hasten.records import InputError
from hasten.runtimes.native import NativeConfig

OFFERED = (
    MadeTorch(),
    MadeTorch(attention="eager", compile=True),
    MadeTorch(precision="bf16"),
    MadeOnnx(),
    MadeOnnx(precision="int8-dynamic", fusion=False),
    MadeOnnx(precision="int8-static", fusion=False),
    MadeOpenVino(),
    MadeOpenVino(precision="int8"),
    MadeOpenVino(precision="int8", smooth_quant_alpha=-1.0),
    MadeOnnx(precision="int4", fusion=False),
    MadeTorch(kv_cache="int8"),
    NativeConfig(precision="int5", fitted=True),
)


def test_without_names_every_config_is_a_recipe_in_its_order() -> None:
    assert tuple(r.runtime for r in recipes(OFFERED)) == OFFERED


@pytest.mark.parametrize(
    ("technique", "places"),
    [
        ("fp32", {0, 1, 3, 6}),
        ("bf16", {2}),
        ("int8", {4, 5, 7, 8}),
        ("int8-dynamic", {4}),
        ("int8-static", {5, 7, 8}),
        ("int4", {9}),
        ("int5", {11}),
        ("int8-cache", {10}),
        ("smoothquant", {7}),
        ("compile", {1}),
        ("sdpa", {0, 2, 10}),
        ("fusion", {3}),
    ],
)
def test_each_technique(technique: str, places: set[int]) -> None:
    found = recipes(OFFERED, techniques=[technique])
    assert {OFFERED.index(r.runtime) for r in found} == places  # type: ignore[arg-type]


def test_every_technique_is_tested() -> None:
    names = {"fp32", "bf16", "int8", "int8-dynamic", "int8-static", "smoothquant", "compile", "sdpa", "fusion", "int4"}
    assert set(TECHNIQUES) == names | {"int8-cache", "int5"}


def test_runtimes_and_techniques_narrow_together() -> None:
    found = recipes(OFFERED, runtimes=["torch", "openvino"], techniques=["bf16", "int8"])
    assert [r.runtime for r in found] == [OFFERED[2], OFFERED[7], OFFERED[8]]


@pytest.mark.parametrize(
    ("narrowing", "says"),
    [
        ({"runtimes": ["onnxruntme"]}, "did you mean onnxruntime?"),
        ({"techniques": ["int8dynamic"]}, "did you mean int8-dynamic?"),
        ({"techniques": ["zzz"]}, "correct --techniques"),
        ({"runtimes": ["torch"], "techniques": ["int8"]}, "leave no candidate"),
    ],
)
def test_what_cannot_be_narrowed_to(narrowing: dict[str, list[str]], says: str) -> None:
    with pytest.raises(InputError, match=says.replace("?", r"\?")):
        recipes(OFFERED, **narrowing)


def test_a_known_runtime_that_is_not_installed_leaves_nothing() -> None:
    with pytest.raises(InputError, match="leave no candidate"):
        recipes(OFFERED[:3], runtimes=["openvino"], known_runtimes=["torch", "openvino"])
