"""Masks, gradients and costs of heads and neurons against what torch itself says."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import IMAGES, TEXTS
from torch import nn
from unit_cases import check_costs, counts, outputs, rows_for, tiny, units_of

from hasten.models.surgery import LowRankLinear
from hasten.passes import run_pass
from hasten.passes.entropy import EntropyConfig
from hasten.passes.fisher import FisherConfig
from hasten.passes.kprune import KPruneConfig
from hasten.passes.units import Costs, PerUnit, by_length, check_settings
from hasten.records import Config, InputError, Rejected


def some_masks(model: object) -> PerUnit:
    generator = torch.Generator().manual_seed(1)
    return units_of(model).ones().map(lambda mask: (torch.rand(mask.shape, generator=generator) < 0.6).float())


@pytest.mark.parametrize("family", [*TEXTS, *IMAGES])
def test_a_masked_model_is_what_surgery_leaves(family: str) -> None:
    model = tiny(family, spread=4.0)
    given = rows_for(model)
    units, masks = units_of(model), some_masks(model)
    whole = outputs(model, given)
    with units.masked(masks):
        masked = outputs(model, given)
    assert torch.equal(outputs(model, given), whole), "the hooks are gone"
    units.keep(masks)
    assert counts(model)[0] == [int(mask.sum()) for mask in masks.heads]
    assert torch.allclose(outputs(model, given), masked, atol=1e-5)
    assert not torch.allclose(masked, whole, atol=1e-3)


def test_gradients_are_finite_differences_of_each_row() -> None:
    model = tiny(spread=4.0).double()
    given = rows_for(model, count=5)
    units = units_of(model)
    (found,), (order,) = list(units.gradients(given, rows=5)), by_length(given, rows=5)
    step = 1e-4
    for layer, head, row in ((0, 1, 2), (3, 0, 4)):
        losses = []
        for value in (1 + step, 1 - step):
            masks = units.ones().map(torch.Tensor.double)
            masks.heads[layer][head] = value
            batch, labels = next(given.batches(batch=5))
            with torch.no_grad(), units.masked(masks):
                losses.append(nn.functional.cross_entropy(model(**batch)[row], labels[row]))  # type: ignore[index]
        expected = float(losses[0] - losses[1]) / (2 * step)
        assert abs(expected) > 1e-7
        assert float(found.heads[layer][order.index(row), head]) == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_gradients_may_start_at_a_layer() -> None:
    model = tiny(spread=4.0)
    given = rows_for(model)
    whole, late = (next(iter(units_of(model).gradients(given, rows=24, first=first))) for first in (0, 2))
    for own, other in ((whole.heads, late.heads), (whole.neurons, late.neurons)):
        assert all(torch.allclose(own[layer], other[layer]) for layer in (2, 3))
        assert not any(other[layer].any() for layer in (0, 1))


def test_batches_hold_every_row_once_and_little_padding() -> None:
    given = rows_for(tiny(), count=70)
    batches = by_length(given, rows=50)
    assert sorted(i for index in batches for i in index) == list(range(50))
    lengths = [given.rows[i]["input_ids"].shape[1] for index in batches for i in index]
    assert lengths == sorted(lengths)


def test_a_pass_over_gradients_leaves_no_trace() -> None:
    model = tiny()
    given = rows_for(model)
    before = copy.deepcopy(model.state_dict())
    for _ in units_of(model).gradients(given, rows=24):
        pass
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_costs_are_the_macs_that_matrix_products_take() -> None:
    model = tiny(attn_implementation="eager")
    check_costs(model, rows_for(model, count=1), head=2)
    assert Costs(3.0, 0.5).of(PerUnit([torch.tensor([1.0, 0.0])], [torch.tensor([2.0, 1.0, 0.0])])) == 4.0


@pytest.mark.parametrize("config", [FisherConfig(round_to=8), KPruneConfig(round_to=8), EntropyConfig(round_to=8)])
def test_factorised_layers_are_refused_by_name(config: Config) -> None:
    model = tiny()
    given = rows_for(model)
    model.hf.bert.encoder.layer[2].intermediate.dense = LowRankLinear(32, 64, rank=8)
    with pytest.raises(Rejected, match=r"layer 2 of this bert is factorised") as caught:
        run_pass(model, config, given)
    assert caught.value.stage == config.kind


def test_an_unknown_family_is_refused() -> None:
    model = tiny()
    model.hf.config.model_type = "mamba"
    with pytest.raises(Rejected, match="mamba"):
        units_of(model)


@pytest.mark.parametrize("bad", [{"keep": 0.0}, {"keep": 1.0}, {"round_to": 0}, {"rows": 0}])
def test_settings_that_mean_nothing_are_errors(bad: dict[str, float]) -> None:
    with pytest.raises(InputError):
        check_settings(**{"keep": 0.5, "round_to": 8, "rows": 8, **bad})  # type: ignore[arg-type]
