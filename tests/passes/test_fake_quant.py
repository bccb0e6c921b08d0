"""Rounding to integers and back: how far anything can move, and what gradients see."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hasten.passes.fake_quant import (
    fake_quantized,
    round_activations,
    round_weight,
    rounding_inputs,
    straight_through,
    weight_steps,
)


def weight_of(rows: int, inputs: int, *, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    sizes = 10 ** torch.empty(rows, 1).uniform_(-3, 1, generator=generator)
    return torch.randn(rows, inputs, generator=generator) * sizes


@settings(deadline=None)
@given(
    rows=st.integers(1, 5), inputs=st.integers(1, 70), bits=st.integers(2, 8), group=st.sampled_from([None, 1, 4, 32])
)  # fmt: skip
def test_no_weight_moves_by_more_than_half_a_step(rows: int, inputs: int, bits: int, group: int | None) -> None:
    weight = weight_of(rows, inputs, seed=inputs)
    found = round_weight(weight, bits=bits, group=group)
    steps = weight_steps(weight, bits=bits, group=group)
    size = group or inputs
    assert steps.shape == (rows, -(-inputs // size))
    own = steps.repeat_interleave(size, dim=1)[:, :inputs]
    assert bool(((found - weight).abs() <= own / 2 * 1.0001).all())
    codes = found / own
    assert torch.allclose(codes, codes.round(), atol=1e-4)
    assert int(codes.round().abs().max()) <= 2 ** (bits - 1) - 1
    assert torch.allclose(round_weight(found, bits=bits, group=group), found, rtol=1e-5), "on the grid it stays"


def test_zeros_stay_zeros_and_the_largest_weight_stays() -> None:
    weight = torch.tensor([[0.0, 0.0, 0.0], [0.0, -0.7, 0.31]])
    found = round_weight(weight, bits=4)
    assert torch.equal(found[0], torch.zeros(3))
    assert found[1, 0] == 0
    assert float(found[1, 1]) == pytest.approx(-0.7)
    assert float(found[1, 2]) == pytest.approx(0.3)


def test_finer_groups_and_more_bits_lose_less() -> None:
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(0))

    def error(bits: int, group: int | None) -> float:
        return float((round_weight(weight, bits=bits, group=group) - weight).square().mean())

    assert error(4, 32) < error(4, 64) < error(4, None)
    assert error(8, None) < error(4, None) / 100


@pytest.mark.parametrize("per", ["token", "tensor"])
@pytest.mark.parametrize("shift", [-5.0, 0.0, 5.0])
def test_activations_move_by_half_a_step_of_their_own_range(per: str, shift: float) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([0.01, 1.0, 100.0]).view(1, 3, 1)
    states = (torch.randn(2, 3, 40, generator=generator) + shift) * sizes
    found = round_activations(states, per=per)  # type: ignore[arg-type]
    dims = (-1,) if per == "token" else (-2, -1)
    span = states.amax(dim=dims, keepdim=True).clamp(min=0) - states.amin(dim=dims, keepdim=True).clamp(max=0)
    # The rounded zero point may cut half a step off one end.
    assert bool(((found - states).abs() <= span / 255 * 1.001).all())
    assert found[0, 0].unique().numel() > (20 if per == "token" else 0)
    assert torch.equal(round_activations(torch.zeros(1, 2, 3)), torch.zeros(1, 2, 3))
    assert round_activations(torch.tensor([[[0.0, 1.0, 0.3]]]))[0, 0, 0] == 0


def test_small_tokens_survive_only_ranges_of_their_own() -> None:
    states = torch.tensor([[[0.01, -0.02, 0.03], [100.0, -50.0, 7.0]]])
    assert not round_activations(states, per="tensor")[0, 0].any()
    assert torch.allclose(round_activations(states, per="token")[0, 0], states[0, 0], rtol=0.02)


def test_rows_of_a_batch_have_ranges_of_their_own() -> None:
    states = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 9.0, 81.0]).view(
        3, 1, 1
    )
    alone = torch.cat([round_activations(row[None], per="tensor") for row in states])
    assert torch.equal(round_activations(states, per="tensor"), alone)


def test_gradients_go_straight_through() -> None:
    weight = torch.randn(3, 5, requires_grad=True)
    rounded = straight_through(weight, round_weight(weight.detach(), bits=4))
    assert torch.allclose(rounded, round_weight(weight.detach(), bits=4))
    (rounded * torch.arange(15.0).view(3, 5)).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.arange(15.0).view(3, 5))


@pytest.mark.parametrize("per", ["token", "tensor", None])
def test_maps_round_within_and_only_within(per: str | None) -> None:
    linear = nn.Linear(12, 4)
    before = linear.weight.detach().clone()
    x = torch.randn(2, 3, 12)
    whole = linear(x)
    inputs = x if per is None else round_activations(x, per=per)  # type: ignore[arg-type]
    wanted = nn.functional.linear(inputs, round_weight(before, bits=8), linear.bias)
    with fake_quantized([linear], bits=8, per=per):  # type: ignore[arg-type]
        assert torch.allclose(linear(x), wanted, atol=1e-6)
    with pytest.raises(RuntimeError), fake_quantized([linear], bits=8, per=per):  # type: ignore[arg-type]
        linear(x[..., :5])
    assert torch.equal(linear.weight, before)
    assert torch.equal(linear(x), whole)
    assert not torch.equal(whole, wanted)


def test_the_hook_lets_gradients_of_inputs_through() -> None:
    linear = nn.Linear(6, 2)
    x = torch.randn(1, 3, 6, requires_grad=True)
    linear.register_forward_pre_hook(rounding_inputs("token"))
    linear(x).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, linear.weight.sum(dim=0).expand(1, 3, 6))
