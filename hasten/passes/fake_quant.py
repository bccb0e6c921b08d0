"""Rounding to k-bit integers and back, in fp32: what integer kernels would compute, for measuring and for training.

Takes weights and activations, gives the nearest ones on the grid. Weights are symmetric, q = clip(round(w / s), -m, m)
with m = 2^(k-1) - 1 and s = max|w| / m of each output row, or of each group of consecutive inputs of a row.
Activations are asymmetric with a range found at run time, per token or over all of a row's tokens:
s = (max - min) / (2^k - 1), zero always on the grid. Gradients go straight through (Bengio et al. 2013, Jacob et al.
2018).

Legend: B rows, L tokens, O outputs, I inputs of a matrix, G inputs of a group, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hasten.passes.grid import Grid, GridSpec, grouped
from hasten.passes.hooks import hooked

Range = Literal["token", "tensor"]


def weight_steps(weight: Tensor, *, bits: int, group: int | None = None) -> Tensor:
    """The step s of every output row [O, 1], or of every group [O, ceil(I / G)]; zero where all weights are zero."""
    largest: Tensor = grouped(weight, group).abs().amax(dim=-1)
    steps: Tensor = largest / (2 ** (bits - 1) - 1)
    return steps


def round_weight(weight: Tensor, *, bits: int, group: int | None = None) -> Tensor:
    """``weight`` [O, I] on its grid: no weight moves by more than half a step. The last group may be shorter."""
    return Grid(GridSpec(bits, group), weight_steps(weight, bits=bits, group=group)).nearest(weight)


def round_activations(states: Tensor, *, bits: int = 8, per: Range = "token") -> Tensor:
    """``states`` [..., L, I] on the grid of each token's range, or of the range of all tokens of a row."""
    dims = (-1,) if per == "token" else (-2, -1)
    low = states.amin(dim=dims, keepdim=True).clamp(max=0.0)
    high = states.amax(dim=dims, keepdim=True).clamp(min=0.0)
    levels = 2**bits - 1
    step = (high - low) / levels
    step = torch.where(step > 0, step, 1.0)
    zero = (-low / step).round()
    codes = ((states / step).round() + zero).clamp(0, levels)
    return (codes - zero) * step


def straight_through(values: Tensor, rounded: Tensor) -> Tensor:
    """``rounded`` going forward, the gradient of ``values`` going back."""
    return values + (rounded - values).detach()


@contextmanager
def fake_quantized(
    linears: Sequence[nn.Linear], *, bits: int = 8, group: int | None = None, per: Range | None = "token"
) -> Iterator[None]:
    """Within, these maps compute with rounded weights, and with rounded inputs (8 bits) unless ``per`` is ``None``."""
    before = [linear.weight.detach().clone() for linear in linears]
    hooks = () if per is None else (linear.register_forward_pre_hook(rounding_inputs(per)) for linear in linears)
    try:
        with torch.no_grad():
            for linear, weight in zip(linears, before, strict=True):
                linear.weight.copy_(round_weight(weight, bits=bits, group=group))
        with hooked(hooks):
            yield
    finally:
        with torch.no_grad():
            for linear, weight in zip(linears, before, strict=True):
                linear.weight.copy_(weight)


def rounding_inputs(per: Range) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    """A forward pre-hook that rounds a map's first input, for which gradients go straight through."""

    def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (straight_through(inputs[0], round_activations(inputs[0].detach(), per=per)), *inputs[1:])

    return hook
