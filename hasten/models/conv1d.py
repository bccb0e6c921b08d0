"""Plain linear layers in place of the ``Conv1D`` that GPT-2 is written with.

Takes a loaded model, changes it in place; its outputs stay what they were. A ``Conv1D`` is a matrix stored the other
way round ([inputs, outputs]): what works on ``nn.Linear`` (surgery, every pass, every exporter) then works here too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hasten.models.surgery import replace_module


def plain_linears(model: nn.Module) -> None:
    """Replace every ``Conv1D`` in ``model``; a model without one stays as it is."""
    from transformers.pytorch_utils import Conv1D

    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            replace_module(model, name, as_linear(module))


def as_linear(conv: Any) -> nn.Linear:
    """The ``nn.Linear`` with weight [O, I] that computes what a ``Conv1D`` with weight [I, O] does."""
    with torch.device("meta"):  # its own weights are not needed
        linear = nn.Linear(conv.nx, conv.nf)
    linear.weight = nn.Parameter(conv.weight.detach().T.contiguous())
    linear.bias = conv.bias
    return linear
