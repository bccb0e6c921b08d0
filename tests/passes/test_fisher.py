"""Fisher pruning: importance, rearrangement, tuning and budgets, each against what defines it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from torch import nn
from unit_cases import counts, macs, outputs, rows_for, tiny, units_of

from hasten.passes import run_pass
from hasten.passes.fisher import (
    FisherConfig,
    cross_importance,
    importance,
    minibatch_gradients,
    prune_fisher,
    rearranged,
    tune,
)
from hasten.passes.gradient import GradientConfig
from hasten.passes.kprune import KPruneConfig
from hasten.passes.magnitude import MagnitudeUnitsConfig
from hasten.passes.units import Costs, real_tokens
from hasten.records import Config, InputError, Rejected

EXACT = FisherConfig(keep=0.5, round_to=1, batch=1)


def planted(model: Any, *, layer: int = 1, head: int = 2, neurons: int = 8, size: float = 1e-3) -> Any:
    """One head and some neurons that hardly write anything."""
    units = units_of(model)
    with torch.no_grad():
        units.attention[layer].output.weight[:, head * 8 : head * 8 + 8] *= size
        units.ffn[layer].down.weight[:, :neurons] *= size
        for linear in (units.attention[layer].query, units.attention[layer].key, units.attention[layer].value):
            linear.weight[head * 8 : head * 8 + 8] *= size
        units.ffn[layer].up.weight[:neurons] *= size
    return model


def test_importance_is_the_sum_of_squared_minibatch_gradients() -> None:
    """Against finite differences of each minibatch's summed loss."""
    model = tiny(spread=4.0).double()
    given = rows_for(model, count=6)
    units = units_of(model)
    found = minibatch_gradients(units, given, rows=6, batch=3)
    assert [g.shape for g in found.heads] == [(2, 4)] * 4
    step, layer, neuron = 1e-4, 2, 5
    slopes = []
    for batch, labels in given.batches(batch=3):
        losses = []
        for value in (1 + step, 1 - step):
            masks = units.ones().map(torch.Tensor.double)
            masks.neurons[layer][neuron] = value
            with torch.no_grad(), units.masked(masks):
                losses.append(float(nn.functional.cross_entropy(model(**batch), labels, reduction="sum")))  # type: ignore[arg-type]
        slopes.append((losses[0] - losses[1]) / (2 * step))
    assert float(importance(found.neurons[layer])[neuron]) == pytest.approx(sum(s * s for s in slopes), rel=1e-3)


@pytest.mark.parametrize(
    "config",
    [EXACT, GradientConfig(round_to=1), KPruneConfig(round_to=1), MagnitudeUnitsConfig(round_to=1)],
    ids=lambda config: config.kind,
)
def test_planted_useless_units_go_first(config: Config) -> None:
    model = planted(tiny(spread=4.0))
    given = rows_for(model, count=48)
    cost = units_of(model).costs(given)
    whole = macs(model, given)
    share = (whole - cost.head - 8 * cost.neuron) / whole + 1e-6
    before = copy.deepcopy(model)
    made = run_pass(model, type(config)(**{**_settings(config), "keep": share}), given)
    assert counts(made) == ([4, 3, 4, 4], [64, 56, 64, 64])
    kept = units_of(before).attention[1].value.weight.view(4, 8, 32)[[0, 1, 3]].reshape(24, 32)
    assert torch.equal(units_of(made).attention[1].value.weight, kept)
    assert torch.equal(units_of(made).ffn[1].up.weight, units_of(before).ffn[1].up.weight[8:])
    assert torch.allclose(outputs(made, given), outputs(before, given), atol=1e-2)


def _settings(config: Any) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__ if name != "kind"}


@settings(max_examples=60, deadline=None)
@drawn(st.integers(0, 2**31), st.integers(2, 12), st.integers(1, 6))
def test_rearranging_never_costs_more_and_keeps_the_count(seed: int, units: int, minibatches: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(minibatches, units, generator=generator)
    mask = (torch.rand(units, generator=generator) < 0.5).float()
    swapped = rearranged(mask, gradients)
    assert swapped.sum() == mask.sum()
    assert cross_importance(swapped, gradients) <= cross_importance(mask, gradients) * (1 + 1e-9)
    for back in (swapped == 0).nonzero().flatten():
        for out in swapped.nonzero().flatten():
            other = swapped.clone()
            other[back], other[out] = 1.0, 0.0
            assert cross_importance(other, gradients) >= cross_importance(swapped, gradients) - 1e-5, "no swap is left"


def test_rearranging_finds_units_that_cancel() -> None:
    """Two large gradients that cancel cost nothing together, which the diagonal cannot see."""
    gradients = torch.tensor([[3.0, -3.0, 1.0, 1.0], [2.0, -2.0, 1.0, 1.0]])
    mask = torch.tensor([1.0, 1.0, 0.0, 0.0])
    assert importance(gradients).argsort()[:2].sort().values.tolist() == [2, 3]
    assert cross_importance(mask, gradients) == 8.0
    swapped = rearranged(torch.tensor([0.0, 1.0, 0.0, 1.0]), gradients)
    assert swapped.tolist() == [0.0, 0.0, 1.0, 1.0]
    assert cross_importance(swapped, gradients) == 0.0


def test_cross_importance_is_the_off_diagonal_fisher() -> None:
    gradients = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 1.0])
    fisher = gradients.T @ gradients
    assert cross_importance(mask, gradients) == pytest.approx(float((1 - mask) @ fisher @ (1 - mask)), rel=1e-5)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_tuning_brings_the_pruned_layers_output_back(family: str) -> None:
    dense = tiny(family, spread=4.0)
    given = rows_for(dense, count=96)
    batches = [batch for batch, _ in given.batches(batch=32)]
    masks = units_of(dense).ones()
    masks.heads[0][1] = 0
    masks.neurons[0][::3] = 0
    goal = after_first_layer(dense, batches)
    errors = []
    for tuned in (False, True):
        units = units_of(copy.deepcopy(dense))
        units.keep(masks)
        if tuned:
            tune(units, copy.deepcopy(units_of(dense).layers), given, rows=96)
        errors.append(float((after_first_layer(units.model, batches) - goal).square().mean()))
    assert errors[1] < 0.97 * errors[0]


def after_first_layer(model: Any, batches: list[Any]) -> torch.Tensor:
    """The hidden states of all real tokens after the first layer [T, H]."""
    with torch.no_grad():
        seen = [model.hf.base_model(**b, output_hidden_states=True).hidden_states[1] for b in batches]
    return torch.cat([real_tokens(states, batch) for states, batch in zip(seen, batches, strict=True)])


def test_a_solution_with_huge_values_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import hasten.passes.fisher as module

    model = tiny(spread=4.0)
    units = units_of(model)
    before = copy.deepcopy(model.state_dict())
    monkeypatch.setattr(module, "tuned_masks", lambda _m, weight, *, width, damp: weight[0, ::width] * 0 + 10.5 * damp)
    tune(units, copy.deepcopy(units.layers), rows_for(model), rows=24)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_tuning_leaves_a_dense_model_alone() -> None:
    model = tiny(spread=4.0)
    given = rows_for(model)
    before = outputs(model, given)
    units = units_of(model)
    tune(units, copy.deepcopy(units.layers), given, rows=24)
    assert torch.allclose(outputs(model, given), before, atol=1e-3)


@pytest.mark.parametrize("keep", [0.35, 0.5, 0.75, 0.95])
@pytest.mark.parametrize("labels", [True, False])
def test_the_budget_of_macs_holds(keep: float, labels: bool) -> None:
    model = tiny(spread=4.0)
    given = rows_for(model, labels=labels)
    before = macs(model, given)
    made = prune_fisher(model, FisherConfig(keep=keep, round_to=8), given)
    assert 0.8 * keep * before < macs(made, given) <= keep * before
    assert all(width % 8 == 0 for width in counts(made)[1])


def test_measured_costs_decide_what_goes_and_their_budget_holds() -> None:
    """The budget is a share of the measured time, the same for every number of heads."""
    found = {}
    for costs in ((10.0, 0.01), (0.01, 10.0)):
        model = tiny(spread=4.0)
        given = rows_for(model)
        before = Costs(*costs).of(units_of(model).ones())
        config = FisherConfig(keep=0.5, round_to=8, unit_costs=costs)
        made = prune_fisher(model, config, given)
        assert Costs(*costs).of(units_of(made).ones()) <= 0.5 * before
        found[costs] = counts(made)
    dear_heads, dear_neurons = found.values()
    assert sum(dear_heads[0]) < sum(dear_neurons[0])
    assert sum(dear_heads[1]) > sum(dear_neurons[1])


def test_too_small_a_budget_and_bad_settings_say_so() -> None:
    model = tiny()
    with pytest.raises(Rejected, match="one head with 32 neurons a layer"):
        prune_fisher(model, FisherConfig(keep=0.3), rows_for(model))
    with pytest.raises(InputError):
        FisherConfig(unit_costs=(1.0, 0.0))
    with pytest.raises(InputError):
        FisherConfig(batch=0)


def test_pruning_twice_goes_on_from_what_is_left() -> None:
    model = tiny(spread=4.0)
    given = rows_for(model)
    before = macs(model, given)
    for _ in range(2):
        model = prune_fisher(model, FisherConfig(keep=0.7, round_to=8), given)
    assert macs(model, given) <= 0.49 * before
    assert torch.isfinite(outputs(model, given)).all()
