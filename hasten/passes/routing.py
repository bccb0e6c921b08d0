"""Padding kept away from the experts of a mixture, so that what these take is of real tokens alone.

Takes a model or one of its layers, gives a context. A router sends every token to experts, padding too, and an expert
cannot tell which of its tokens were padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from hasten.models.experts import Experts
from hasten.passes.calibration import Batch
from hasten.passes.hooks import hooked

_NO_EXPERT = -1


@contextmanager
def unpadded(module: nn.Module, current: Sequence[Batch]) -> Iterator[None]:
    """Within, the padding of the batch that ``current[0]`` is by then reaches no expert in ``module``.

    Real tokens stay as they are: nobody attends to padding.
    """

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        mask = current[0].get("attention_mask")
        if mask is None:
            return None
        states, chosen, shares = inputs
        return states, chosen.masked_fill(~mask.bool().flatten()[:, None], _NO_EXPERT), shares

    with hooked(own.register_forward_pre_hook(hook) for own in module.modules() if isinstance(own, Experts)):
        yield
