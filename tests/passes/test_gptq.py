"""GPTQ against the optimal brain surgeon with its inverse taken anew for every column."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from unit_cases import outputs, rows_for, tiny

from hasten.passes.gptq import GptqConfig, answered, quantize_gptq
from hasten.passes.grid import GridSpec, fitted, output_error
from hasten.passes.matrices import encoder_matrices
from hasten.passes.rtn import RtnConfig, quantize_rtn
from hasten.passes.surgeon import inverse_factor
from hasten.records import InputError

DAMP = 0.01


def correlated(inputs: int, *, tokens: int = 500, seed: int = 0) -> torch.Tensor:
    """Second moment of inputs of which neighbours say much the same."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, inputs, generator=generator, dtype=torch.float64)
    x = x + 0.9 * x.roll(1, dims=1) + 0.5 * x.roll(3, dims=1)
    x = x * torch.rand(inputs, generator=generator, dtype=torch.float64).add(0.1)
    return x.T @ x / tokens


def weight_of(rows: int, inputs: int) -> torch.Tensor:
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 20


def factor_of(moment: torch.Tensor, order: torch.Tensor | None = None) -> torch.Tensor:
    seen = moment if order is None else moment[order][:, order]
    return inverse_factor(seen, damp=DAMP, kind="gptq")


def naive(weight: torch.Tensor, moment: torch.Tensor, *, spec: GridSpec, order: torch.Tensor | None) -> torch.Tensor:
    """Frantar and Alistarh's OBQ in a fixed order: the inverse Hessian is updated column by column, explicitly.

    After column j is settled, row and column j leave H^-1 by one step of Gaussian elimination.
    """
    w = weight.clone()
    inputs = w.shape[1]
    size = spec.group or inputs
    h = 2 * moment
    h = h + DAMP * h.diagonal().mean() * torch.eye(inputs, dtype=h.dtype)
    inverse = torch.linalg.inv(h)
    grids = [fitted(w[:, start : start + size], spec) for start in range(0, inputs, size)]
    for step, j in enumerate(range(inputs) if order is None else order.tolist()):
        if order is None and spec.group and step % size == 0:
            grids[j // size] = fitted(w[:, j : j + size], spec)
        settled = grids[j // size].column(w[:, j], 0)
        error = (w[:, j] - settled) / inverse[j, j]
        w -= torch.outer(error, inverse[j])
        w[:, j] = settled
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
        inverse[j], inverse[:, j] = 0.0, 0.0
    return w


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [None, 32])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("ordered", [False, True])
def test_it_is_the_optimal_brain_surgeon(bits: int, group: int | None, symmetric: bool, ordered: bool) -> None:
    moment, weight, spec = correlated(80), weight_of(6, 80), GridSpec(bits, group, symmetric)
    order = moment.diagonal().argsort(descending=True) if ordered else None
    found = answered(weight, factor_of(moment, order), spec=spec, order=order)
    assert torch.allclose(found, naive(weight, moment, spec=spec, order=order), atol=1e-9)


def test_blocks_are_only_an_order_of_sums() -> None:
    """More columns than a block, groups that begin in the second one."""
    moment, weight, spec = correlated(200), weight_of(3, 200), GridSpec(4, 64)
    found = answered(weight, factor_of(moment), spec=spec)
    assert torch.allclose(found, naive(weight, moment, spec=spec, order=None), atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("ordered", [False, True])
def test_outputs_move_less_than_by_rounding(seed: int, bits: int, ordered: bool) -> None:
    moment, weight, spec = correlated(96, seed=seed), weight_of(24, 96), GridSpec(bits, 32)
    order = moment.diagonal().argsort(descending=True) if ordered else None
    found = answered(weight, factor_of(moment, order), spec=spec, order=order)
    plain = fitted(weight, spec).nearest(weight)
    assert output_error(weight, found, moment) < (0.95 if bits == 2 else 0.75) * output_error(weight, plain, moment)


def test_inputs_that_say_nothing_of_each_other_leave_plain_rounding() -> None:
    weight, spec = weight_of(5, 64), GridSpec(4, 32)
    found = answered(weight, factor_of(torch.eye(64, dtype=torch.float64)), spec=spec)
    assert torch.allclose(found, fitted(weight, spec).nearest(weight))


def test_in_order_every_group_keeps_the_grid_it_had() -> None:
    moment, weight, spec = correlated(64), weight_of(8, 64), GridSpec(3, 32)
    order = moment.diagonal().argsort(descending=True)
    found = answered(weight, factor_of(moment, order), spec=spec, order=order)
    grid = fitted(weight, spec)
    assert torch.equal(grid.nearest(found), found)


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("act_order", [False, True])
def test_models_rounded_so_stay_closer(bits: Any, act_order: bool) -> None:
    ratios = []
    for seed in range(4):
        model = tiny(spread=4.0, seed=seed)
        given = rows_for(model, count=100, seed=seed)
        whole = outputs(model, given)
        plain = quantize_rtn(copy.deepcopy(model), RtnConfig(bits=bits, group=32), given)
        made = quantize_gptq(copy.deepcopy(model), GptqConfig(bits=bits, group=32, act_order=act_order), given)
        lost = [float((outputs(m, given) - whole).square().mean()) for m in (plain, made)]
        ratios.append(lost[1] / lost[0])
        touched = {f"{matrix.name}.weight" for matrix in encoder_matrices(made, what="a test")}
        before, after = model.hf.state_dict(), made.hf.state_dict()
        assert {name for name in before if not torch.equal(before[name], after[name])} == touched
    assert torch.tensor(ratios).log().mean().exp() < 0.8


@pytest.mark.parametrize("bad", [{"bits": 5}, {"group": 48}, {"damp": 0.0}, {"rows": 0}])
def test_settings_that_mean_nothing_are_errors(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        GptqConfig(**bad)
