"""Matrices on an integer grid with a step for every group of inputs, layer by layer taught what the dense layer says.

Takes a wrapper, gives the wrapper with fp32 weights that lie on a 4- or 8-bit grid and were trained, a few steps a
layer, to make up for the rounding of weights and of activations.

Source: Yao et al. 2022, "ZeroQuant": group-wise weights, token-wise activations, layer-by-layer distillation. One
difference: a layer learns on what the rounded layers below give it, not on the dense ones' states, so that it mends
their errors too. Where learning does not bring a layer closer on the calibration rows, plain rounding stays.

Legend: T real tokens, H hidden size.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from hasten.passes.calibration import Calibration, Progress
from hasten.passes.fake_quant import round_weight, rounding_inputs, straight_through
from hasten.passes.family import stacks_with_rows
from hasten.passes.matrices import Matrix, encoder_matrices
from hasten.passes.reconstruction import Walk, in_turn
from hasten.passes.settings import as_declared
from hasten.passes.units import batches_of
from hasten.records import InputError


@dataclass(frozen=True, slots=True)
class ZeroQuantConfig:
    """``bits`` of the weights, one step for each ``group`` of inputs; ``steps`` of Adam a layer (0: only round) over
    ``rows`` rows."""

    kind: ClassVar[str] = "zeroquant"
    bits: Literal[4, 8] = 8
    group: Literal[32, 64, 128] = 64
    steps: int = 60
    lr: float = 1e-4
    rows: int = 256

    def __post_init__(self) -> None:
        as_declared(self)
        if self.bits not in (4, 8) or self.group not in (32, 64, 128):
            raise InputError(
                f"bits={self.bits}, group={self.group}", expected="4 or 8 bits in groups of 32, 64 or 128",
                remedy="correct the recipe",
            )  # fmt: skip
        if self.steps < 0 or self.rows < 1 or not 0 < self.lr < 1:
            raise InputError(
                f"steps={self.steps}, rows={self.rows}, lr={self.lr}",
                expected="no fewer than 0 steps, at least one row, a learning rate between 0 and 1",
                remedy="correct the recipe",
            )

    @property
    def label(self) -> str:
        return f"zeroquant w{self.bits}g{self.group}" + " untaught" * (self.steps == 0)


def quantize_groupwise(model: Any, config: ZeroQuantConfig, calibration: Calibration) -> Any:
    """The wrapper with its matrices on the grid, first layer first.

    Costs four forward passes a row and ``steps`` forward and backward passes of 32 rows through each layer. Raises
    Rejected for a family without an adapter.
    """
    stacks = stacks_with_rows(model, calibration, what="ZeroQuant")
    matrices, count = encoder_matrices(model, what="ZeroQuant"), sum(len(stack.layers) for stack in stacks)
    batches = batches_of(calibration, rows=config.rows)
    # Before anything is rounded: the goals of a decoder are what it says of the dense encoder's states.
    walks = [Walk(model, stack.layers, batches, written=place > 0) for place, stack in enumerate(stacks)]
    spent_s = 0.0
    for number, layer, walk in in_turn(model, stacks, batches):
        calibration.listen(Progress("zeroquant: layer by layer", number, count))
        dense, dense_walk = copy.deepcopy(layer), walks[int(walk.written)]
        goals = [dense_walk.through(dense, batch) for batch in range(len(batches))]
        own = [matrix for matrix in matrices if matrix.layer == number]
        with RoundedLayer(layer, own, bits=config.bits, group=config.group) as rounded:
            lesson = Lesson(rounded, walk, goals)
            if calibration.rehearse is not None:
                spent_s += lesson.rehearsed_s(config)
            elif config.steps:
                lesson.learn(config, np.random.default_rng([calibration.seed, number]))
            rounded.settle()
            walk.advance(rounded)
        dense_walk.arrive(goals)
    if calibration.rehearse is not None:
        calibration.rehearse(spent_s)
    return model


class RoundedLayer(nn.Module):
    """A layer that computes with rounded matrices and rounded inputs; as a context, so that its hooks go again."""

    def __init__(self, layer: nn.Module, matrices: Sequence[Matrix], *, bits: int, group: int) -> None:
        super().__init__()
        self.layer, self.bits, self.group, self.learning = layer, bits, group, False
        names = {id(module): name for name, module in layer.named_modules()}
        self.linears = {names[id(matrix.linear)]: matrix.linear for matrix in matrices}
        self._hooks = ExitStack()

    def __enter__(self) -> RoundedLayer:
        for linear in self.linears.values():
            hook = linear.register_forward_pre_hook(rounding_inputs("token"))
            self._hooks.callback(hook.remove)
        return self

    def __exit__(self, *_error: object) -> None:
        self._hooks.close()

    def forward(self, *inputs: Any, **named: Any) -> Any:
        with torch.set_grad_enabled(self.learning):
            weights = {
                f"{name}.weight": straight_through(linear.weight, self._rounded(linear))
                for name, linear in self.linears.items()
            }
            return torch.func.functional_call(self.layer, weights, inputs, named)

    @torch.no_grad()
    def settle(self) -> None:
        """Put the weights themselves on the grid."""
        for linear in self.linears.values():
            linear.weight.copy_(self._rounded(linear))

    def _rounded(self, linear: nn.Linear) -> Tensor:
        return round_weight(linear.weight.detach(), bits=self.bits, group=self.group)


class Lesson:
    """One layer's distillation: ``goals`` are the dense layer's outputs [B, L, H] for every batch of the walk."""

    def __init__(self, rounded: RoundedLayer, walk: Walk, goals: Sequence[Tensor]) -> None:
        self.rounded, self.walk, self.goals = rounded, walk, goals
        self.parameters = [p for p in rounded.layer.parameters() if p.requires_grad]

    def learn(self, config: ZeroQuantConfig, rng: np.random.Generator) -> None:
        """``config.steps`` steps over batches in random order; back to the start when they bring nothing."""
        before = [p.detach().clone() for p in self.parameters]
        error = self.error()
        optimizer = torch.optim.Adam(self.parameters, lr=config.lr)
        order: list[int] = []
        for _ in range(config.steps):
            order = order or rng.permutation(len(self.goals)).tolist()
            self._step(optimizer, order.pop())
        if not self.error() < error:  # also when it is not a number
            with torch.no_grad():
                for parameter, kept in zip(self.parameters, before, strict=True):
                    parameter.copy_(kept)

    def rehearsed_s(self, config: ZeroQuantConfig) -> float:
        """Seconds that :meth:`learn` would take; nothing is learnt."""
        started = time.perf_counter()
        self._gradients(0)
        step_s = time.perf_counter() - started
        started = time.perf_counter()
        self.error()
        return config.steps * step_s + 2 * (time.perf_counter() - started)

    def error(self) -> float:
        """Mean squared error of the rounded layer's outputs over all real tokens."""
        total = sum(float(self._squares(number)) for number in range(len(self.goals)))
        return total / sum(int(self.walk.real(number).sum()) for number in range(len(self.goals)))

    def _step(self, optimizer: torch.optim.Optimizer, number: int) -> None:
        for parameter, gradient in zip(self.parameters, self._gradients(number), strict=True):
            parameter.grad = gradient
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def _gradients(self, number: int) -> Sequence[Tensor | None]:
        self.rounded.learning = True
        try:
            with torch.enable_grad():
                return torch.autograd.grad(self._squares(number), self.parameters, allow_unused=True)
        finally:
            self.rounded.learning = False

    def _squares(self, number: int) -> Tensor:
        found = self.walk.through(self.rounded, number)
        return (found - self.goals[number])[self.walk.real(number)].square().sum()
