"""Group-wise weights: on the grid, taught by the dense layer, and never further from it than plain rounding."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from unit_cases import outputs, rows_for, tiny

from hasten.passes.calibration import Calibration
from hasten.passes.fake_quant import fake_quantized, round_weight
from hasten.passes.family import adapter_of
from hasten.passes.group_quant import Lesson, RoundedLayer, ZeroQuantConfig, quantize_groupwise
from hasten.passes.low_rank import LowRankConfig, factorise
from hasten.passes.matrices import encoder_matrices
from hasten.passes.reconstruction import Walk
from hasten.passes.units import batches_of
from hasten.records import InputError

FOUR_BITS = {"bits": 4, "group": 32}


def first_lesson(model: Any, given: Calibration) -> tuple[RoundedLayer, Lesson]:
    layers = adapter_of(model, what="a test").layers(model.hf)
    walk = Walk(model, layers, batches_of(given, rows=len(given)))
    goals = [walk.through(layers[0], number) for number in range(len(walk.batches))]
    own = [m for m in encoder_matrices(model, what="a test") if m.layer == 0]
    rounded = RoundedLayer(layers[0], own, bits=4, group=32)
    return rounded, Lesson(rounded, walk, goals)


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_end_on_the_grid(bits: Any) -> None:
    model = tiny(spread=4.0)
    given = rows_for(model)
    before = copy.deepcopy(model.state_dict())
    quantize_groupwise(model, ZeroQuantConfig(bits=bits, group=32, steps=5, lr=1e-3), given)
    matrices = encoder_matrices(model, what="a test")
    for matrix in matrices:
        weight = matrix.linear.weight
        assert torch.allclose(round_weight(weight, bits=bits, group=32), weight, rtol=1e-5, atol=1e-7)
        for row in weight[:3].detach():
            for group in row.view(-1, 32):
                assert len(group.unique()) <= 2**bits - 1
    untouched = [n for n in before if "classifier" in n or "embeddings" in n]
    assert all(torch.equal(before[name], model.state_dict()[name]) for name in untouched)
    assert not any(matrix.linear._forward_pre_hooks for matrix in matrices)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_teaching_mends_what_rounding_breaks() -> None:
    model = tiny(spread=4.0)
    given = rows_for(model, count=64)
    whole = outputs(model, given)
    lost = {}
    for steps in (0, 100):
        made = quantize_groupwise(copy.deepcopy(model), ZeroQuantConfig(**FOUR_BITS, steps=steps, lr=1e-3), given)  # type: ignore[arg-type]
        maps = [matrix.linear for matrix in encoder_matrices(made, what="a test")]
        with fake_quantized(maps, bits=4, group=32, per="token"):  # weights are there already, inputs are not
            lost[steps] = float((outputs(made, given) - whole).square().mean())
    assert lost[100] < 0.5 * lost[0]


def test_without_steps_it_is_rounding_alone() -> None:
    model = tiny(spread=4.0)
    given = rows_for(model)
    wanted = [round_weight(m.linear.weight.detach(), bits=8, group=64) for m in encoder_matrices(model, what="a test")]
    quantize_groupwise(model, ZeroQuantConfig(steps=0), given)
    found = [m.linear.weight for m in encoder_matrices(model, what="a test")]
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_a_lesson_that_harms_is_forgotten() -> None:
    model = tiny(spread=4.0)
    given = rows_for(model)
    with first_lesson(model, given)[0] as rounded:
        lesson = first_lesson(model, given)[1]
        lesson.rounded = rounded
        before = copy.deepcopy(rounded.layer.state_dict())
        error = lesson.error()
        lesson.learn(ZeroQuantConfig(**FOUR_BITS, steps=3, lr=0.9), np.random.default_rng(0))  # type: ignore[arg-type]
        assert lesson.error() == error
        assert all(torch.equal(before[name], value) for name, value in rounded.layer.state_dict().items())


def test_a_rounded_layer_computes_with_rounded_weights_and_inputs() -> None:
    model = tiny(spread=4.0)
    given = rows_for(model)
    rounded, lesson = first_lesson(model, given)
    with rounded:
        found = lesson.walk.through(rounded, 0)
    maps = list(rounded.linears.values())
    assert len(maps) == 6
    with fake_quantized(maps, bits=4, group=32, per="token"):
        wanted = lesson.walk.through(rounded.layer, 0)
    assert torch.allclose(found, wanted, atol=1e-6)
    assert not torch.allclose(found, lesson.goals[0], atol=1e-3)


def test_gradients_reach_every_parameter_of_the_layer() -> None:
    model = tiny(spread=4.0)
    given = rows_for(model)
    rounded, lesson = first_lesson(model, given)
    with rounded:
        gradients = lesson._gradients(0)
    names = [name for name, _ in rounded.layer.named_parameters()]
    assert len(names) == len(gradients) == 16
    for name, gradient in zip(names, gradients, strict=True):
        assert gradient is not None
        assert "key.bias" in name or bool(gradient.any()), name  # a key's bias moves all scores of a query alike


def test_factors_are_rounded_too() -> None:
    model = tiny(spread=4.0)
    given = rows_for(model)
    factorise(model, LowRankConfig(keep=0.5), given)
    quantize_groupwise(model, ZeroQuantConfig(**FOUR_BITS, steps=2), given)  # type: ignore[arg-type]
    for matrix in encoder_matrices(model, what="a test"):
        weight = matrix.linear.weight
        assert torch.allclose(round_weight(weight, bits=4, group=32), weight, rtol=1e-5, atol=1e-7)


def test_a_rehearsal_says_how_long_and_only_rounds() -> None:
    model = tiny(spread=4.0)
    given = rows_for(model)
    heard: list[float] = []
    rehearsed = Calibration(given.rows, targets=given.targets, rehearse=heard.append)
    wanted = quantize_groupwise(copy.deepcopy(model), ZeroQuantConfig(steps=0), given).state_dict()
    found = quantize_groupwise(model, ZeroQuantConfig(steps=50), rehearsed).state_dict()
    assert len(heard) == 1
    assert heard[0] > 0
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("bad", [{"bits": 3}, {"group": 48}, {"steps": -1}, {"rows": 0}, {"lr": 0.0}])
def test_settings_that_mean_nothing_are_errors(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        ZeroQuantConfig(**bad)
