"""AWQ: foldings that change nothing, scales and ranges that never lose more than plain rounding."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import IMAGES, TEXTS
from unit_cases import check_int4_grid, outputs, rows_for, tiny

from hasten.passes.awq import AwqConfig, channel_scales, exact_folds, quantize_awq, within_range
from hasten.passes.family import adapter_of
from hasten.passes.grid import GridSpec, fitted, output_error
from hasten.passes.low_rank import LowRankConfig, factorise
from hasten.passes.matrices import encoder_matrices
from hasten.passes.prefix import PrefixConfig, tune_prefix
from hasten.passes.rtn import RtnConfig, quantize_rtn
from hasten.passes.smooth_quant import fold
from hasten.passes.sparsity import layer_by_layer
from hasten.records import InputError


def moment_of(inputs: int, *, seed: int = 0, loud: int = 3) -> torch.Tensor:
    """Second moment of inputs of which a few are thirty times larger."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(400, inputs, generator=generator, dtype=torch.float64)
    x[:, :: inputs // loud] *= 30
    return x.T @ x / 400


def weight_of(rows: int, inputs: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(seed)) / 20


SPECS = [GridSpec(bits, group, same) for bits in (2, 3, 4, 8) for group in (None, 32) for same in (True, False)]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.label)
@pytest.mark.parametrize("seed", range(2))
def test_scales_lose_no_more_than_rounding(spec: GridSpec, seed: int) -> None:
    weight, moment = weight_of(32, 96, seed=seed), moment_of(96, seed=seed)
    scales = channel_scales(weight, moment, spec=spec)
    wide = weight * scales
    found = fitted(wide, spec).nearest(wide) / scales
    plain = output_error(weight, fitted(weight, spec).nearest(weight), moment)
    assert output_error(weight, found, moment) < 0.8 * plain
    loud = torch.arange(0, 96, 32)
    assert float(scales[loud].min()) > float(scales.median()), "large inputs get finer steps"


def test_the_search_is_the_papers() -> None:
    """By force, over outputs and not over their moment."""
    weight, spec = weight_of(16, 64), GridSpec(3, 32)
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(300, 64, generator=generator, dtype=torch.float64) * torch.logspace(-1, 1, 64, dtype=torch.float64)
    sizes = x.square().mean(dim=0).sqrt()
    lost = {}
    for power in np.linspace(0, 1, 21):
        scales = (sizes**power).clamp(min=1e-4)
        scales = (scales / (scales.max() * scales.min()).sqrt()).float()
        wide = weight * scales
        moved = weight - fitted(wide, spec).nearest(wide) / scales
        lost[float(power)] = (float((x @ moved.double().T).square().sum()), scales)
    wanted = min(lost.values(), key=lambda pair: pair[0])[1]
    assert torch.allclose(channel_scales(weight, x.T @ x / 300, spec=spec), wanted, rtol=1e-4)


def test_inputs_that_are_always_zero_change_nothing() -> None:
    weight, spec = weight_of(8, 32), GridSpec(4, 32)
    assert torch.equal(channel_scales(weight, torch.zeros(32, 32), spec=spec), torch.ones(32))
    found = within_range(weight, torch.zeros(32, 32, dtype=torch.float64), spec=spec, clip=True)
    assert torch.equal(found, fitted(weight, spec).nearest(weight))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.label)
def test_ranges_lose_no_more_than_rounding(spec: GridSpec) -> None:
    weight, moment = weight_of(32, 96), moment_of(96)
    errors = [output_error(weight, within_range(weight, moment, spec=spec, clip=c), moment) for c in (False, True)]
    assert errors[1] <= errors[0]
    assert spec.bits > 4 or errors[1] < errors[0]


@pytest.mark.parametrize("family", [*TEXTS, *IMAGES])
def test_folding_alone_changes_nothing(family: str) -> None:
    model = tiny(family, spread=8.0)
    given = rows_for(model)
    whole = outputs(model, given)
    pairs = exact_folds(model)
    assert len(pairs) == (12 if family in IMAGES else 4)
    for pair in pairs:
        fold(pair, torch.logspace(-1, 1, pair.takers[0].in_features))
    assert torch.allclose(outputs(model, given), whole, atol=1e-4)


def errors_by_matrix(model: Any, made: Any, given: Any, foldings: dict[str, torch.Tensor]) -> dict[str, float]:
    """Each matrix's output error on what the dense model feeds it."""
    ours = {m.name: m.linear.weight for m in encoder_matrices(made, what="a test")}
    found = {}
    for groups in layer_by_layer(model, given, rows=256, full=True, kind="a test"):
        for matrices, moment in groups:
            for matrix in matrices:
                scales = foldings.get(matrix.name, torch.ones(matrix.linear.in_features))
                found[matrix.name] = output_error(matrix.linear.weight.detach(), ours[matrix.name] / scales, moment)
    return found


def test_the_first_layers_outputs_are_no_further_than_rtns() -> None:
    """There both see the same inputs; the value map's rows were divided, so it is left out."""
    model = tiny(spread=8.0)
    with torch.no_grad():
        model.hf.bert.encoder.layer[0].attention.self.value.bias.fill_(1.0)  # so that it says what it is divided by
    given = rows_for(model, count=100)
    for bits in (2, 3, 4):
        config = {"bits": bits, "group": 32}
        plain = quantize_rtn(copy.deepcopy(model), RtnConfig(**config), given)  # type: ignore[arg-type]
        made = quantize_awq(copy.deepcopy(model), AwqConfig(**config), given)  # type: ignore[arg-type]
        layer, name = made.hf.bert.encoder.layer[0], "bert.encoder.layer.0.attention.output.dense"
        made_bias = layer.attention.self.value.bias.detach()
        scales = {name: 1.0 / made_bias}
        rtns, awqs = errors_by_matrix(model, plain, given, {}), errors_by_matrix(model, made, given, scales)
        seen = [n for n in rtns if ".layer.0." in n and "value" not in n]
        assert len(seen) == 5
        assert all(awqs[n] <= rtns[n] * 1.0001 for n in seen), bits
        assert sum(awqs[n] for n in seen) < 0.95 * sum(rtns[n] for n in seen)


def plant_outliers(model: Any, *, factor: float = 60.0) -> None:
    """One channel of every layer's attention output is ``factor`` times larger, and the next matrix takes it back."""
    adapter = adapter_of(model, what="a test")
    with torch.no_grad():
        for layer in adapter.layers(model.hf):
            attention = adapter.attention(layer)
            attention.value.weight[5] *= factor
            attention.value.bias[5] = 1.0
            attention.output.weight[:, 5] /= factor / 4


def test_a_model_with_loud_channels_stays_closer() -> None:
    model = tiny(spread=8.0)
    plant_outliers(model)
    given = rows_for(model, count=100)
    whole = outputs(model, given)
    lost = {}
    for config in (RtnConfig(bits=3, group=32), AwqConfig(bits=3, group=32), AwqConfig(bits=3, group=32, clip=False)):
        made = copy.deepcopy(model)
        made = quantize_rtn(made, config, given) if isinstance(config, RtnConfig) else quantize_awq(made, config, given)
        lost[config.label] = float((outputs(made, given) - whole).square().mean())
    plain, awq, unclipped = lost.values()
    assert unclipped < plain
    assert awq < plain


def test_what_reads_a_norm_gets_one_scale() -> None:
    """Query, key and value together: the norm in front of them can only be divided once."""
    model = tiny("vit", spread=8.0)
    given = rows_for(model)
    adapter = adapter_of(model, what="a test")
    with torch.no_grad():
        for layer in adapter.layers(model.hf):
            for norm, parts in zip(adapter.norms(layer), (adapter.attention(layer), adapter.ffn(layer)), strict=True):
                norm.weight[3] *= 60.0  # type: ignore[index, operator]
                for linear in parts.inputs:
                    linear.weight[:, 3] /= 15.0
    whole = outputs(model, given)
    before = [norm.weight.clone() for layer in adapter.layers(model.hf) for norm in adapter.norms(layer)]  # type: ignore[operator]
    plain = quantize_rtn(copy.deepcopy(model), RtnConfig(bits=3, group=32), given)
    lost = [float((outputs(plain, given) - whole).square().mean())]
    quantize_awq(model, AwqConfig(bits=3, group=32, clip=False), given)
    lost.append(float((outputs(model, given) - whole).square().mean()))
    assert lost[1] < lost[0]
    after = [norm.weight for layer in adapter.layers(model.hf) for norm in adapter.norms(layer)]
    assert all(float((b / a)[3]) > float((b / a).median()) for b, a in zip(before, after, strict=True))  # type: ignore[operator]


def test_relu_and_factors_are_foldings_too() -> None:
    assert len(exact_folds(tiny(hidden_act="relu"))) == 8
    model = tiny(spread=4.0)
    given = rows_for(model)
    factorise(model, LowRankConfig(keep=0.5), given)
    assert len(exact_folds(model)) > 4
    whole = outputs(model, given)
    quantize_awq(model, AwqConfig(bits=8, group=32), given)
    assert torch.allclose(outputs(model, given), whole, atol=0.05)


def test_a_model_with_prefixes_is_rounded_without_foldings() -> None:
    pytest.importorskip("peft")
    model = tiny()
    given = rows_for(model)
    original = copy.deepcopy(model)
    from dataclasses import replace

    tune_prefix(model, PrefixConfig(tokens=3, epochs=1, batch=8), replace(given, original=original))
    assert exact_folds(model) == []
    bias = model.hf.bert.encoder.layer[0].attention.self.value.bias.clone()
    quantize_awq(model, AwqConfig(group=32), given)
    assert torch.equal(model.hf.bert.encoder.layer[0].attention.self.value.bias, bias)


def test_an_int4_runtime_finds_the_same_weights() -> None:
    model = tiny(spread=8.0)
    quantize_awq(model, AwqConfig(group=32), rows_for(model))
    check_int4_grid(model, group=32)


@pytest.mark.parametrize("bad", [{"bits": 5}, {"group": 48}, {"rows": 0}])
def test_settings_that_mean_nothing_are_errors(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        AwqConfig(**bad)
