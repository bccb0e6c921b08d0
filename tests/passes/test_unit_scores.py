"""The simple criteria: gradient, entropy, magnitude, chance."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from unit_cases import counts, macs, outputs, rows_for, tiny, units_of

from hasten.passes import run_pass
from hasten.passes.entropy import EntropyConfig, eager_attention, normalised_entropy, prune_entropy, sharpness, visible
from hasten.passes.gradient import GradientConfig, sensitivities
from hasten.passes.magnitude import MagnitudeUnitsConfig, head_norms, neuron_norms
from hasten.passes.random_units import RandomUnitsConfig, prune_random_units

ALL = (GradientConfig, EntropyConfig, MagnitudeUnitsConfig, RandomUnitsConfig)


@pytest.mark.parametrize("config", ALL, ids=lambda config: config.kind)
@pytest.mark.parametrize("keep", [0.4, 0.7, 0.97])
def test_budgets_hold_and_heads_go_like_neurons(config: Any, keep: float) -> None:
    model = tiny(spread=4.0)
    given = rows_for(model)
    before = macs(model, given)
    made = run_pass(model, config(keep=keep, round_to=4), given)
    assert macs(made, given) <= keep * before
    assert sum(counts(made)[0]) == round(16 * keep)
    assert sum(counts(made)[1]) == pytest.approx(256 * keep, abs=24)


def test_sensitivity_is_the_mean_size_over_rows_on_unit_length() -> None:
    model = tiny(spread=4.0)
    given = rows_for(model, count=40)
    units = units_of(model)
    whole = [
        torch.cat(parts).abs().mean(0)
        for parts in zip(*(f.heads for f in units.gradients(given, rows=40)), strict=True)
    ]
    found = sensitivities(units, given, rows=40)
    for own, mean in zip(found.heads, whole, strict=True):
        assert torch.allclose(own, mean / mean.norm(), atol=1e-5)
    assert all(float(score.norm()) == pytest.approx(1.0, abs=1e-5) for score in found.both())


def test_even_attention_has_entropy_one_and_sharp_attention_none() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]])
    even = mask / mask.sum(dim=1, keepdim=True)
    sharp = torch.eye(4)[0].expand(3, 4)
    attention = torch.stack([even, sharp.float()], dim=1)[:, :, None].expand(3, 2, 4, 4)
    # Five real queries have a choice; the sixth has one key only, and padding asks nothing.
    assert torch.allclose(normalised_entropy(attention, visible(mask)), torch.tensor([5.0, 0.0]), atol=1e-6)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_a_head_that_attends_evenly_goes_first(family: str) -> None:
    model = tiny(family, spread=6.0)
    given = rows_for(model)
    query = units_of(model).attention[2].query
    with torch.no_grad():
        query.weight[8:16] = 0.0
        query.bias[8:16] = 0.0
    batches = [batch for batch, _ in given.batches(batch=8)]
    before = model.hf.config._attn_implementation
    scores = sharpness(units_of(model), batches)
    assert model.hf.config._attn_implementation == before
    assert float(scores.heads[2][1]) == pytest.approx(0.0, abs=1e-5)
    assert min(float(score.min()) for score in scores.heads) == float(scores.heads[2][1])
    made = prune_entropy(copy.deepcopy(model), EntropyConfig(keep=0.94, round_to=1), given)
    assert counts(made)[0] == [4, 4, 3, 4]
    assert torch.equal(units_of(made).attention[2].query.weight, query.weight[[*range(8), *range(16, 32)]])


def test_activations_of_neurons_are_those_behind_the_nonlinearity() -> None:
    model = tiny(spread=4.0)
    with torch.no_grad():
        units_of(model).ffn[1].up.weight[7] = 0.0
        units_of(model).ffn[1].up.bias[7] = -20.0  # gelu(-20) is 0
    scores = sharpness(units_of(model), [batch for batch, _ in rows_for(model).batches(batch=8)])
    assert int(scores.neurons[1].argmin()) == 7
    assert float(scores.neurons[1][7]) < 1e-6


def test_the_attention_implementation_comes_back_after_an_error() -> None:
    model = tiny()
    before = model.hf.config._attn_implementation
    context = eager_attention(model.hf)
    context.__enter__()
    assert model.hf.config._attn_implementation == "eager"
    assert not context.__exit__(RuntimeError, RuntimeError("out of memory"), None)
    assert model.hf.config._attn_implementation == before


def test_norms_are_those_of_all_the_weights_that_go() -> None:
    model = tiny()
    attention, ffn = units_of(model).attention[0], units_of(model).ffn[0]
    rows = slice(16, 24)
    parts = [attention.query.weight[rows], attention.key.weight[rows], attention.value.weight[rows]]
    joined = torch.cat([*(part.flatten() for part in parts), attention.output.weight[:, rows].flatten()])
    assert float(head_norms(attention)[2]) == pytest.approx(float(joined.norm()), rel=1e-5)
    neuron = torch.cat([ffn.up.weight[5], ffn.down.weight[:, 5]])
    assert float(neuron_norms(ffn)[5]) == pytest.approx(float(neuron.norm()), rel=1e-5)


def test_draws_differ_and_come_again() -> None:
    found = []
    for draw in (0, 1, 0):
        model = tiny(spread=4.0)
        given = rows_for(model)
        found.append(
            outputs(prune_random_units(model, RandomUnitsConfig(keep=0.5, round_to=8, draw=draw), given), given)
        )
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])
