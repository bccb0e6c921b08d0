"""A feed-forward block of its own for every expert, in place of the stacks of matrices that transformers keeps.

Takes a loaded mixture of experts, changes it in place; its outputs stay what they were. Experts are most of such a
model's weights, and as parameters of three dimensions neither surgery nor any pass over matrices would see them.

Legend: E experts, T tokens, K experts a token, H hidden size, N neurons of an expert.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hasten.models.surgery import replace_module
from hasten.records import Rejected


class Expert(nn.Module):
    """down(activation(gate(x)) * up(x))"""

    def __init__(self, gate_up: Tensor, down: Tensor, activation: nn.Module) -> None:
        """gate_up [2 N, H], the gate first; down [H, N]."""
        super().__init__()
        gate, up = gate_up.chunk(2)
        self.gate_proj, self.up_proj, self.down_proj = (_linear(weight) for weight in (gate, up, down))
        self.act_fn = activation

    def forward(self, states: Tensor) -> Tensor:
        found: Tensor = self.down_proj(self.act_fn(self.gate_proj(states)) * self.up_proj(states))
        return found


class Experts(nn.ModuleList):
    """E experts, called as transformers calls its stacked ones."""

    def forward(self, states: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        """states [T, H], the experts of each token [T, K] and their shares [T, K] -> [T, H]."""
        total = torch.zeros_like(states)
        for number, expert in enumerate(self):
            token, place = torch.where(chosen == number)
            # A trace keeps the way of its example: there every expert runs, on no token where none has chosen it.
            if torch.jit.is_tracing() or len(token):  # type: ignore[attr-defined,no-untyped-call]
                found = expert(states[token]) * shares[token, place, None]
                total.index_add_(0, token, found.to(total.dtype))
        return total


def separate_experts(model: nn.Module) -> None:
    """Replace every stack of experts in ``model``; a model without one stays as it is.

    Raises Rejected for a stack in another layout than Mixtral's.
    """
    for name, module in list(model.named_modules()):
        if isinstance(getattr(module, "gate_up_proj", None), nn.Parameter):
            replace_module(model, name, _separate(module))


def _separate(stacked: Any) -> Experts:
    if stacked.gate_up_proj.ndim != 3 or stacked.is_transposed or stacked.has_bias or not stacked.is_concatenated:
        raise Rejected("family", f"the experts of a {type(stacked).__name__} are stored in a layout of their own")
    pairs = zip(stacked.gate_up_proj.detach(), stacked.down_proj.detach(), strict=True)
    return Experts(Expert(gate_up, down, stacked.act_fn) for gate_up, down in pairs)


def _linear(weight: Tensor) -> nn.Linear:
    outputs, inputs = weight.shape
    with torch.device("meta"):  # its own weights are not needed
        linear = nn.Linear(inputs, outputs, bias=False)
    linear.weight = nn.Parameter(weight.clone())
    return linear
