"""Least squares from moments against the whole problem, and the walk against the model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_models import IMAGES, SEQ2SEQ, TEXTS, language_model
from torch import nn
from unit_cases import outputs, rows_for, texts_for, tiny, units_of

from hasten.models import adapter_for
from hasten.passes.calibration import Batch
from hasten.passes.reconstruction import (
    Moments,
    Walk,
    fold,
    fold_scales,
    moments,
    solved_weight,
    sublayers,
    tuned_masks,
)
from hasten.passes.units import Units, real_tokens
from hasten.tasks.generation_wrappers import Seq2SeqGenerationWrapper
from hasten.tasks.wrappers import NextTokenWrapper, Wrapper


def problem(tokens: int = 60, *, units: int = 5, width: int = 3, hidden: int = 7) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, units * width, generator=generator, dtype=torch.float64)
    weight = torch.randn(hidden, units * width, generator=generator, dtype=torch.float64)
    y = x @ weight.T + 3 * torch.randn(tokens, hidden, generator=generator, dtype=torch.float64)
    return x, y, weight


def filled(x: torch.Tensor, y: torch.Tensor) -> Moments:
    found = Moments.empty(nn.Linear(x.shape[1], y.shape[1]))
    for start in range(0, len(x), 16):
        found.add(x[start : start + 16], y[start : start + 16])
    return found


def test_tuned_masks_solve_the_same_problem_as_lsmr() -> None:
    from scipy.sparse.linalg import lsmr

    x, y, weight = problem()
    columns = torch.stack([(x[:, 3 * u : 3 * u + 3] @ weight[:, 3 * u : 3 * u + 3].T).flatten() for u in range(5)], 1)
    right = (y.flatten() - columns.sum(dim=1)).numpy()
    expected = 1.0 + lsmr(columns.numpy(), right, damp=2.0, atol=1e-12, btol=1e-12)[0]
    found = tuned_masks(filled(x, y), weight, width=3, damp=2.0)
    assert torch.allclose(found, torch.from_numpy(expected), atol=1e-8)
    assert (found - 1).abs().max() > 1e-3


def test_solved_weight_is_ridge_regression_towards_the_old_weight() -> None:
    x, y, weight = problem()
    ridge = 0.3 * float((x.T @ x).diagonal().mean())
    wide = torch.cat([x, ridge**0.5 * torch.eye(15, dtype=torch.float64)])
    expected = torch.linalg.lstsq(wide, torch.cat([y, ridge**0.5 * weight.T])).solution.T
    found = filled(x, y)
    solved = solved_weight(found, weight, damp=0.3)
    assert torch.allclose(solved, expected, atol=1e-8)
    assert found.error(solved) < found.error(weight)
    assert found.error(weight) == pytest.approx(float((y - x @ weight.T).square().sum(1).mean()))


@pytest.mark.parametrize("family", [*TEXTS, *IMAGES])
def test_a_walk_sees_the_models_own_hidden_states(family: str) -> None:
    model = tiny(family, spread=4.0)
    given = rows_for(model, count=7)
    batches: list[Batch] = [batch for batch, _ in given.batches(batch=3)]
    layers = units_of(model).layers
    walk = Walk(model, layers, batches)
    with torch.no_grad():
        states = [model.hf.base_model(**batch, output_hidden_states=True).hidden_states for batch in batches]
    for depth, layer in enumerate([*layers, None]):
        for batch, own, theirs in zip(batches, walk.states, states, strict=True):
            assert torch.allclose(real_tokens(own, batch), real_tokens(theirs[depth], batch), atol=1e-5)
        if layer is not None:
            walk.advance(layer)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gemma3_text", "t5", "bart"])
def test_a_walk_calls_every_layer_as_the_model_does(family: str) -> None:
    """Windows and positions may differ from layer to layer, and biases come from the first."""
    hf, given = language_model(family), texts_for(count=7)
    model: Any = (Seq2SeqGenerationWrapper if family in SEQ2SEQ else NextTokenWrapper)(hf).eval()
    batches: list[Batch] = [batch for batch, _ in given.batches(batch=3)]
    adapter = adapter_for(family)
    assert adapter is not None
    layers = adapter.layers(hf)
    walk = Walk(model, layers, batches)
    body = hf.get_encoder() if family in SEQ2SEQ else hf.base_model
    with torch.no_grad():
        states = [body(**batch, output_hidden_states=True).hidden_states for batch in batches]
    for depth, layer in enumerate(layers):
        for batch, own, theirs in zip(batches, walk.states, states, strict=True):
            assert torch.allclose(real_tokens(own, batch), real_tokens(theirs[depth], batch), atol=1e-5)
        assert torch.equal(walk.through(layer, 0), walk.through(layer, 0)), "it may be called again"
        walk.advance(layer)


@pytest.mark.parametrize("family", [*TEXTS, *IMAGES])
def test_an_unpruned_sublayer_has_nothing_to_mend_and_padding_does_not_count(family: str) -> None:
    model = tiny(family, spread=4.0)
    units = units_of(model)
    given = rows_for(model, count=9)
    same = copy.deepcopy(units.layers[0])
    found = {}
    for size in (1, 9):
        batches = [batch for batch, _ in given.batches(batch=size)]
        walks = [Walk(model, units.layers, batches) for _ in range(2)]
        pairs = zip(*(sublayers(units.adapter, layer) for layer in (units.layers[0], same)), strict=True)
        for goal, own in pairs:
            seen = moments(goal, own, *walks)
            assert seen.tokens == sum(units.adapter.tokens(model.hf, row) for row in given.rows)
            assert seen.error(own.map.weight.detach()) < 1e-6 * seen.wanted / seen.tokens
            values = tuned_masks(seen, own.map.weight.detach(), width=own.width, damp=1.0)
            assert torch.allclose(values, torch.ones_like(values), atol=1e-3)
            found[size, own.width] = seen
    for width in {width for _, width in found}:
        assert torch.allclose(found[1, width].inputs, found[9, width].inputs, rtol=1e-4, atol=1e-4)


def beside_a_pruned(dense: Wrapper) -> tuple[Units, Units, tuple[Walk, Walk]]:
    """Units of the model and of a copy whose first layer has lost a head, and a walk through each."""
    pruned = copy.deepcopy(dense)
    masks = units_of(pruned).ones()
    masks.heads[0][1] = 0
    units_of(pruned).keep(masks)
    whole, own = units_of(dense), units_of(pruned)
    batches = [batch for batch, _ in rows_for(dense, count=40).batches(batch=20)]
    return whole, own, (Walk(dense, whole.layers, batches), Walk(pruned, own.layers, batches))


def test_moments_mend_what_earlier_sublayers_lost() -> None:
    """A pruned FFN should give the dense sum less the pruned residual: then the sum is the dense one."""
    dense = tiny(spread=4.0)
    whole, own, walks = beside_a_pruned(dense)
    goal, mine = (sublayers(units.adapter, units.layers[0])[1] for units in (whole, own))
    before = moments(goal, mine, *walks)
    assert before.error(mine.map.weight.detach()) > 1e-4
    with torch.no_grad():
        mine.map.weight.copy_(solved_weight(before, mine.map.weight, damp=1e-6))
    walks[0].advance(whole.layers[0])
    walks[1].advance(own.layers[0])
    mended = sum(float((a - b).square().sum()) for a, b in zip(walks[0].states, walks[1].states, strict=True))
    _, unchanged, (_, unmended) = beside_a_pruned(dense)
    unmended.advance(unchanged.layers[0])
    lost = sum(float((a - b).square().sum()) for a, b in zip(walks[0].states, unmended.states, strict=True))
    assert mended < 0.5 * lost


def test_folded_values_are_masks() -> None:
    model = tiny(spread=4.0)
    given = rows_for(model)
    units = units_of(model)
    masks = units.ones()
    masks.heads[2] = torch.tensor([1.0, 0.3, 2.0, -1.0])
    with units.masked(masks):
        expected = outputs(model, given)
    fold(units.attention[2].output, masks.heads[2], width=8)
    assert torch.allclose(outputs(model, given), expected, atol=1e-5)


def test_folded_scales_change_nothing_and_are_ones() -> None:
    model = tiny("dinov2", spread=4.0)
    units, given = units_of(model), rows_for(model)
    with torch.no_grad():
        for layer in units.layers:
            for scale in units.adapter.scales(layer):
                scale.uniform_(-0.5, 2.0)
    whole = outputs(model, given)
    fold_scales(units.adapter, units.layers)
    assert torch.allclose(outputs(model, given), whole, atol=1e-5)
    assert all(bool((scale == 1).all()) for layer in units.layers for scale in units.adapter.scales(layer))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fold_scales(units.adapter, units.layers)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("family", IMAGES)
def test_with_the_norm_in_front_the_ffn_mends_the_layers_output(family: str) -> None:
    """The sum is what the layer gives: its distance to the dense layer's is the moments' error, before and after."""
    dense = tiny(family, spread=4.0)
    whole, own, walks = beside_a_pruned(dense)
    goal, mine = (sublayers(units.adapter, units.layers[0])[1] for units in (whole, own))
    found = moments(goal, mine, *walks)
    errors = []
    for weight in (mine.map.weight.detach().clone(), solved_weight(found, mine.map.weight.detach(), damp=1e-6)):
        with torch.no_grad():
            mine.map.weight.copy_(weight)
        pairs = [(walks[0].through(whole.layers[0], n), walks[1].through(own.layers[0], n)) for n in range(2)]
        errors.append(sum(float((a - b).square().sum()) for a, b in pairs) / found.tokens)
        assert errors[-1] == pytest.approx(found.error(weight), rel=1e-3)
    assert errors[1] < 0.8 * errors[0]
