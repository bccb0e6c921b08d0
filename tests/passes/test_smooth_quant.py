"""SmoothQuant changes nothing in fp32 and makes planted outliers harmless in int8."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_models import IMAGES, TEXTS
from unit_cases import outputs, rows_for, tiny

from hasten.passes.fake_quant import fake_quantized
from hasten.passes.family import adapter_of
from hasten.passes.fisher import FisherConfig, prune_fisher
from hasten.passes.low_rank import LowRankConfig, factorise
from hasten.passes.smooth_quant import SmoothQuantConfig, folds, input_maxima, smooth, smoothing_scales
from hasten.passes.units import batches_of
from hasten.records import InputError


def parts_of(model: Any, layer: int) -> tuple[Any, Any]:
    adapter = adapter_of(model, what="a test")
    found = adapter.layers(model.hf)[layer]
    return adapter.attention(found), adapter.ffn(found)


def plant_outliers(model: Any, *, factor: float = 60.0) -> None:
    """One channel of every layer's attention output is ``factor`` times larger, and the next matrix takes it back."""
    with torch.no_grad():
        for layer in range(4):
            attention, _ = parts_of(model, layer)
            attention.value.weight[5] *= factor
            attention.value.bias[5] *= factor
            attention.output.weight[:, 5] /= factor


@pytest.mark.parametrize("family", [*TEXTS, *IMAGES])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_the_function_stays_the_same(family: str, alpha: float) -> None:
    model = tiny(family, spread=8.0)
    given = rows_for(model)
    plant_outliers(model)
    whole = outputs(model, given)
    before = copy.deepcopy(model.state_dict())
    smooth(model, SmoothQuantConfig(alpha=alpha), given)
    assert torch.allclose(outputs(model, given), whole, atol=1e-5)
    attention, ffn = parts_of(model, 2)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    names = {id(module): name for name, module in model.named_modules()}
    assert {f"{names[id(attention.value)]}.weight", f"{names[id(attention.output)]}.weight"} <= changed
    assert f"{names[id(ffn.down)]}.weight" not in changed, "GELU lets no factor pass"
    assert f"{names[id(attention.output)]}.bias" not in changed


@pytest.mark.parametrize("per", ["token", "tensor"])
def test_int8_loses_less_of_outliers(per: Any) -> None:
    model = tiny(spread=8.0)
    given = rows_for(model)
    plant_outliers(model)
    whole = outputs(model, given)
    lost = []
    for other in (model, smooth(copy.deepcopy(model), SmoothQuantConfig(), given)):
        maps = [parts_of(other, layer)[0].output for layer in range(4)]
        with fake_quantized(maps, bits=8, per=per):
            lost.append(float((outputs(other, given) - whole).square().mean()))
    assert lost[1] < 0.2 * lost[0]


def test_rounding_the_value_map_gets_no_harder() -> None:
    """Its rows have scales of their own: what is divided is the row and the step alike."""
    model = tiny(spread=8.0)
    given = rows_for(model)
    plant_outliers(model)
    whole = outputs(model, given)
    lost = []
    for other in (model, smooth(copy.deepcopy(model), SmoothQuantConfig(), given)):
        with fake_quantized([parts_of(other, layer)[0].value for layer in range(4)], bits=8, per="token"):
            lost.append(float((outputs(other, given) - whole).square().mean()))
    assert lost[1] == pytest.approx(lost[0], rel=0.05)


def test_relu_passes_factors_on() -> None:
    model = tiny(spread=8.0, hidden_act="relu")
    assert len(folds(model)) == 8
    given = rows_for(model)
    with torch.no_grad():
        ffn = parts_of(model, 1)[1]
        ffn.up.weight[9] *= 50
        ffn.down.weight[:, 9] /= 50
    whole = outputs(model, given)
    largest = input_maxima(model, [ffn.down], batches_of(given, rows=24))[0]
    smooth(model, SmoothQuantConfig(), given)
    assert torch.allclose(outputs(model, given), whole, atol=1e-5)
    after = input_maxima(model, [ffn.down], batches_of(given, rows=24))[0]
    used = largest > 0
    assert float(after[used].max() / after[used].median()) < float(largest[used].max() / largest[used].median()) / 3


def test_gelu_does_not() -> None:
    assert len(folds(tiny())) == 4
    assert len(folds(tiny("distilbert", activation="relu"))) == 8


def test_with_a_half_both_sides_meet_in_the_middle() -> None:
    """At alpha 0.5 the largest input and the largest weight of a channel become equal: sqrt(max|X| max|W|)."""
    inputs, weight = torch.tensor([9.0, 0.25, 0.0]), torch.tensor([[1.0, -4.0, 2.0], [-0.5, 1.0, 0.0]])
    scales = smoothing_scales(inputs, weight, alpha=0.5)
    assert torch.allclose(scales, torch.tensor([3.0, 0.25, 1.0]))
    assert torch.allclose((inputs / scales)[:2], (weight * scales).abs().amax(dim=0)[:2])
    assert torch.allclose(smoothing_scales(inputs, weight, alpha=1.0)[:2], inputs[:2])


def test_factorised_and_pruned_layers_keep_their_function() -> None:
    model = tiny(spread=8.0)
    given = rows_for(model)
    prune_fisher(model, FisherConfig(keep=0.7, round_to=8), given)
    factorise(model, LowRankConfig(keep=0.6, which="all", round_to=4), given)
    whole = outputs(model, given)
    count = len(folds(model))
    assert count > 4 + 8, "value -> output, and the two factors of each matrix"
    smooth(model, SmoothQuantConfig(), given)
    assert torch.allclose(outputs(model, given), whole, atol=1e-5)


@pytest.mark.parametrize("bad", [{"alpha": -0.1}, {"alpha": 1.1}, {"alpha": float("nan")}, {"rows": 0}])
def test_settings_that_mean_nothing_are_errors(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        SmoothQuantConfig(**bad)


@pytest.mark.parametrize("family", IMAGES)
def test_norms_in_front_of_sublayers_take_a_share(family: str) -> None:
    """Nobody else reads them: their outliers pass to Q, K, V and up, together, and int8 loses less."""
    model = tiny(family, spread=8.0)
    given = rows_for(model)
    adapter = adapter_of(model, what="a test")
    with torch.no_grad():
        for layer in adapter.layers(model.hf):
            for norm, linears in zip(adapter.norms(layer), (adapter.attention(layer), adapter.ffn(layer)), strict=True):
                norm.weight[3] *= 60.0  # type: ignore[index, operator]
                for linear in linears.inputs:
                    linear.weight[:, 3] /= 60.0
    assert len(folds(model)) == 4 * 3
    whole = outputs(model, given)
    smoothed = smooth(copy.deepcopy(model), SmoothQuantConfig(), given)
    assert torch.allclose(outputs(smoothed, given), whole, atol=1e-5)
    lost = []
    for other in (model, smoothed):
        pairs = [parts_of(other, number) for number in range(4)]
        maps = [linear for parts in pairs for part in parts for linear in part.inputs]
        with fake_quantized(maps, bits=8, per="token"):
            lost.append(float((outputs(other, given) - whole).square().mean()))
    assert lost[1] < 0.5 * lost[0]


def test_a_gate_lets_factors_pass_beside_it() -> None:
    model = tiny("dinov2", spread=8.0, use_swiglu_ffn=True)
    given = rows_for(model)
    assert len(folds(model)) == 4 * 4
    whole = outputs(model, given)
    before = parts_of(model, 1)[1].down.weight.detach().clone()
    smooth(model, SmoothQuantConfig(), given)
    assert torch.allclose(outputs(model, given), whole, atol=1e-5)
    assert not torch.equal(parts_of(model, 1)[1].down.weight, before)
