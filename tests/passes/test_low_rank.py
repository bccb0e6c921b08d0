"""Low-rank factors against what the singular value decomposition says is possible."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from unit_cases import outputs, rows_for, tiny, units_of

from hasten.models.surgery import LowRankLinear
from hasten.passes.fisher import FisherConfig, prune_fisher
from hasten.passes.low_rank import LowRankConfig, factorise, factors, input_moments, rank_of, thin
from hasten.passes.reconstruction import Walk
from hasten.records import Rejected

SHAPES = [(12, 20), (20, 12), (16, 16)]


def skewed(inputs: int, *, tokens: int = 400) -> torch.Tensor:
    """Inputs whose directions differ by a factor of a hundred in size, off the axes and off the origin."""
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(inputs, inputs, generator=generator, dtype=torch.float64))[0]
    x = torch.randn(tokens, inputs, generator=generator, dtype=torch.float64)
    return x * torch.logspace(0, -2, inputs, dtype=torch.float64) @ turn + 0.5


def weight_of(outputs_: int, inputs: int) -> torch.Tensor:
    return torch.randn(outputs_, inputs, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
def test_factors_are_the_cholesky_weighted_svd(shape: tuple[int, int]) -> None:
    """W' = (truncated SVD of W S) S^-1 with S S^T = the moment, and its error is the energy of the lost values."""
    x, weight = skewed(shape[1]), weight_of(*shape)
    moment = x.T @ x / len(x)
    root = torch.linalg.cholesky(moment)
    u, s, vt = torch.linalg.svd(weight @ root, full_matrices=False)
    for rank in (1, 4, 8):
        expected = (u[:, :rank] * s[:rank]) @ vt[:rank] @ torch.linalg.inv(root)
        first, second = factors(weight, moment, rank=rank)
        assert first.shape == (rank, shape[1])
        assert second.shape == (shape[0], rank)
        lost = float(((second @ first - weight) @ moment @ (second @ first - weight).T).trace())
        assert lost == pytest.approx(float(s[rank:].square().sum()), rel=1e-3)
        assert torch.allclose(x @ (second @ first).T, x @ expected.T, atol=0.02 * float(s[0]))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_activations_help_where_inputs_are_skewed(shape: tuple[int, int]) -> None:
    x, weight = skewed(shape[1]), weight_of(*shape)
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    plain = (u[:, :4] * s[:4]) @ vt[:4]
    first, second = factors(weight, x.T @ x / len(x), rank=4)
    aware_error, plain_error = (float((x @ (weight - w).T).square().sum()) for w in (second @ first, plain))
    assert aware_error < 0.5 * plain_error


@pytest.mark.parametrize("shape", SHAPES)
def test_full_rank_loses_nothing_even_where_no_row_went(shape: tuple[int, int]) -> None:
    weight = weight_of(*shape)
    moment = torch.zeros(shape[1], shape[1], dtype=torch.float64)
    moment[0, 0] = 1.0  # rows along one axis only
    first, second = factors(weight, moment, rank=min(shape))
    assert torch.allclose(second @ first, weight, atol=1e-6)


def test_the_mean_costs_no_rank() -> None:
    x = skewed(16) + 5.0
    linear = nn.Linear(16, 12).double()
    mean, covariance = x.mean(dim=0), torch.cov(x.T, correction=0)
    made = thin(linear, mean, covariance, rank=3).double()
    with torch.no_grad():
        assert torch.allclose(made(mean), linear(mean), atol=1e-5)
        centred = (made(x) - linear(x)).square().sum()
        first, second = factors(linear.weight.double(), x.T @ x / len(x), rank=3)
        raw = (x @ (second @ first - linear.weight).T).square().sum()
    assert centred < raw
    unbiased = nn.Linear(16, 12, bias=False)
    assert thin(unbiased, mean, covariance, rank=3).second.bias is None


def test_moments_are_those_of_real_tokens() -> None:
    model = tiny(spread=4.0)
    given = rows_for(model, count=9)
    units = units_of(model)
    found = []
    for size in (1, 9):
        walk = Walk(model, units.layers, [batch for batch, _ in given.batches(batch=size)])
        found.append((input_moments(walk, units.layers[0], [units.ffn[0].up])[0], torch.cat(_real(walk))))
    states = found[0][1]
    query = input_moments(Walk(model, units.layers, given.head(9)), units.layers[0], [units.attention[0].query])[0]
    assert torch.allclose(query[0].float(), states.mean(dim=0), atol=1e-5)
    assert torch.allclose(query[1].float(), torch.cov(states.T, correction=0), atol=1e-4)
    assert torch.allclose(found[0][0][1], found[1][0][1], atol=1e-4)


def _real(walk: Walk) -> list[torch.Tensor]:
    return [states[batch["attention_mask"].bool()] for states, batch in zip(walk.states, walk.batches, strict=True)]


@pytest.mark.parametrize(
    ("outputs_", "inputs", "keep", "rank"), [(64, 32, 0.5, 8), (64, 32, 0.8, 16), (32, 32, 0.9, 8)]
)
def test_ranks_fit_the_share(outputs_: int, inputs: int, keep: float, rank: int) -> None:
    found = rank_of(nn.Linear(inputs, outputs_), LowRankConfig(keep=keep))
    assert found == rank
    assert found * (inputs + outputs_) <= keep * inputs * outputs_


def test_what_saves_nothing_is_left_alone_or_refused() -> None:
    assert rank_of(nn.Linear(12, 12), LowRankConfig()) is None
    model = tiny()
    with pytest.raises(Rejected, match="multiples of 64"):
        factorise(model, LowRankConfig(round_to=64), rows_for(model))


@pytest.mark.parametrize("which", ["ffn", "attention", "all"])
def test_only_what_was_asked_for_and_better_than_plain_svd(which: str) -> None:
    dense = tiny(spread=3.0)
    given = rows_for(dense, count=150)
    goal = outputs(dense, given)
    made = factorise(copy.deepcopy(dense), LowRankConfig(keep=0.75, which=which), given)  # type: ignore[arg-type]
    thins = [name for name, module in made.named_modules() if isinstance(module, LowRankLinear)]
    per_layer = {"ffn": 2, "attention": 4, "all": 6}[which]
    assert len(thins) == 4 * per_layer
    plain = copy.deepcopy(dense)
    for name in thins:
        weight = plain.get_submodule(name).weight
        rank = made.get_submodule(name).rank
        u, s, vt = torch.linalg.svd(weight.detach(), full_matrices=False)
        weight.data.copy_((u[:, :rank] * s[:rank]) @ vt[:rank])
    errors = [float((outputs(model, given) - goal).square().mean()) for model in (made, plain)]
    assert errors[0] < errors[1]


def test_after_pruning_yes_before_pruning_or_twice_no() -> None:
    model = tiny(spread=4.0)
    given = rows_for(model)
    model = prune_fisher(model, FisherConfig(keep=0.7, round_to=8), given)
    model = factorise(model, LowRankConfig(keep=0.6, which="ffn", round_to=4), given)
    assert torch.isfinite(outputs(model, given)).all()
    with pytest.raises(Rejected, match="factorised already"):
        factorise(model, LowRankConfig(keep=0.6, which="all", round_to=4), given)
    with pytest.raises(Rejected, match="prune before the low-rank pass"):
        prune_fisher(model, FisherConfig(keep=0.7, round_to=8), given)
