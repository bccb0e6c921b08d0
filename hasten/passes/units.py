"""Attention heads and FFN neurons as units that can be weighed, masked and removed.

Takes a wrapper, gives its units' number, cost and gradients, and cuts what a pass decided to cut. Knows nothing of
which units deserve to stay: that is the passes' part, and how many fit a budget :mod:`hasten.passes.unit_budget`'s.

Where several queries share a key and a value, the unit of attention is the group: the key/value head with all its
queries. "Head" means such a group everywhere here; where each head has a key of its own the two are one.

Cost in multiply-accumulates (MACs, not FLOPs) of one row of S tokens, biases and softmax left out: a group of Q queries
2 S H (Q D + D) + 2 S^2 Q D (query and output projection, key and value projection; scores and weighted sum), which for
a head alone is 4 S H D + 2 S^2 D; a neuron 2 S H (up and down), or 3 S H with a gate. Scores are counted whole, also
where a decoder's tokens look only back: most kernels compute both halves.
Source: Kwon et al. 2022, "A Fast Post-Training Pruning Framework for Transformers", section 3.

Legend: B rows, L tokens, S mean tokens a row, H hidden size, D width of a head, A groups, N neurons of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hasten.models.adapter import AttentionParts, FeedForward
from hasten.models.prefix import has_prefixes
from hasten.models.surgery import keep_heads, keep_neurons
from hasten.passes.calibration import Batch, Calibration, length_of, padded, real, task_loss
from hasten.passes.family import adapter_of
from hasten.passes.hooks import hooked
from hasten.records import InputError, Rejected

BATCH = 32
Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class PerUnit:
    """One tensor a layer for its heads [..., A] and one for its neurons [..., N]: masks, scores or gradients."""

    heads: list[Tensor]
    neurons: list[Tensor]

    def map(self, change: Callable[[Tensor], Tensor]) -> PerUnit:
        return PerUnit([change(h) for h in self.heads], [change(n) for n in self.neurons])

    def both(self) -> list[Tensor]:
        """Heads of all layers, then neurons of all layers."""
        return [*self.heads, *self.neurons]


@dataclass(frozen=True, slots=True)
class Costs:
    """What one head and one neuron cost, in MACs a row or in milliseconds."""

    head: float
    neuron: float

    def of(self, kept: PerUnit) -> float:
        """Cost of the units whose mask is not zero."""
        heads, neurons = (sum(int((m != 0).sum()) for m in masks) for masks in (kept.heads, kept.neurons))
        return heads * self.head + neurons * self.neuron


class Units:
    """The heads and neurons of a wrapper's layers, first layer first; of two stacks, the encoder's come first, and the
    heads of the attention between them last.

    ``kind`` and ``what`` name the pass, and ``stacks`` says whether it can weigh several. Raises Rejected for a family
    without an adapter, for more stacks than that or several feed-forward blocks a layer, and where a layer's matrices
    are already factorised: thin factors have no rows that belong to one head or neuron. What keeps a family's heads
    together is undone (``loosen``).
    """

    def __init__(self, model: Any, *, kind: str, what: str, stacks: Literal["one", "several"] = "one") -> None:
        self.model = model
        self.adapter = adapter = adapter_of(model, what=what)
        found = adapter.stacks(model.hf)
        if len(found) > 1 and stacks == "one":
            names = " and ".join(stack.name for stack in found)
            raise Rejected(kind, f"{what} weighs the units of one stack, and this {adapter.family} has {names}")
        adapter.loosen(model.hf)
        self._depths = [len(stack.layers) for stack in found]
        self.layers = found[0].layers if len(found) == 1 else nn.ModuleList(m for own in found for m in own.layers)
        if has_prefixes(model.hf):
            raise Rejected(kind, f"{what} would leave prefixes of heads that are gone; prune before tuning a prefix")
        for number, layer in enumerate(self.layers):
            ffn = adapter.ffn(layer)
            parts = [*ffn.inputs, ffn.down]
            parts += [part for own in adapter.attentions(layer) for part in (*own.inputs, own.output)]
            if not all(isinstance(part, nn.Linear) for part in parts):
                raise Rejected(
                    kind, f"{what} needs whole matrices, and layer {number} of this {adapter.family} is factorised; "
                    "prune before the low-rank pass",
                )  # fmt: skip

    @property
    def attention(self) -> list[AttentionParts]:
        every = [self.adapter.attentions(layer) for layer in self.layers]
        return [own for own, *_ in every] + [own for _, *between in every for own in between]

    @property
    def ffn(self) -> list[FeedForward]:
        return [self.adapter.ffn(layer) for layer in self.layers]

    @property
    def parts(self) -> list[tuple[slice, slice]]:
        """Which heads and which neurons (layers of a :class:`PerUnit`) belong together: those of a stack, and the heads
        of the attention between two, beside no neurons."""
        found, start = [], 0
        for depth in self._depths:
            found.append((slice(start, start + depth), slice(start, start + depth)))
            start += depth
        between = len(self.attention) - start
        return found + [(slice(start, start + between), slice(0, 0))] * bool(between)

    def apart(self, both: list[Tensor]) -> PerUnit:
        """What :meth:`PerUnit.both` put together."""
        heads = len(both) - len(self.layers)
        return PerUnit(both[:heads], both[heads:])

    def ones(self) -> PerUnit:
        """The mask that changes nothing."""
        heads = [torch.ones(parts.groups) for parts in self.attention]
        return PerUnit(heads, [torch.ones(parts.neurons) for parts in self.ffn])

    def costs(self, calibration: Calibration) -> Costs:
        """MACs of one head and one neuron for a row of the calibration's mean length."""
        rows = calibration.first()
        tokens = sum(self.adapter.tokens(self.model.hf, row) for row in rows) / len(rows)
        parts, ffn = self.attention[0], self.ffn[0]
        hidden = parts.query.in_features
        maps = 1 + sum(linear.out_features for linear in ffn.inputs) // ffn.neurons  # down, up, and a gate
        projections = 2 * tokens * hidden * (parts.group_dim + parts.head_dim)
        return Costs(projections + 2 * tokens**2 * parts.group_dim, maps * tokens * hidden)

    @contextmanager
    def masked(self, masks: PerUnit) -> Iterator[None]:
        """Within, heads and neurons are multiplied by masks [A], [N], or [B, A], [B, N] for one mask a row.

        The masks sit on the inputs of the attention's output projection and of the FFN's second matrix, so they work
        under every attention implementation.
        """
        heads = zip(self.attention, masks.heads, strict=True)
        neurons = zip(self.ffn, masks.neurons, strict=True)
        with (
            hooked(own.output.register_forward_pre_hook(_times(mask, own.group_dim)) for own, mask in heads),
            hooked(own.down.register_forward_pre_hook(_times(mask, 1)) for own, mask in neurons),
        ):
            yield

    def gradients(
        self, calibration: Calibration, *, rows: int, loss: Loss | None = None, first: int = 0
    ) -> Iterator[PerUnit]:
        """dL/dm at m = 1 of every row, one [B, A] and [B, N] a layer, batch by batch as in :func:`by_length`.

        Rows of a batch have masks of their own, so a row's gradient is its own. ``loss`` (of rows of outputs [R, K])
        defaults to the calibration's task loss, seeded. Layers before ``first`` get zeros, and cost no backward pass.
        """
        generator = torch.Generator().manual_seed(calibration.seed)
        for index in by_length(calibration, rows=rows):
            masks = self.ones().map(partial(_repeated, rows=len(index)))
            wanted = [*masks.heads[first:], *masks.neurons[first:]]
            for mask in wanted:
                mask.requires_grad_(True)
            with torch.enable_grad(), self.masked(masks):
                batch = padded([calibration.rows[i] for i in index])
                outputs, targets = self.model(**batch), calibration.targets_of(index)
                value = (
                    task_loss(self.model, outputs, targets, batch=batch, generator=generator)
                    if loss is None
                    else loss(self.model.rows(outputs, batch))
                )
                found = torch.autograd.grad(value, wanted)
            blank = masks.map(torch.zeros_like)
            count = len(masks.heads) - first
            yield PerUnit([*blank.heads[:first], *found[:count]], [*blank.neurons[:first], *found[count:]])

    def keep(self, masks: PerUnit) -> None:
        """Cut every unit whose mask is zero, for real; the values of the other masks are not looked at."""
        for attention, mask in zip(self.attention, masks.heads, strict=True):
            if not mask.all():
                keep_heads(attention, mask.nonzero().flatten().tolist())
        for ffn, mask in zip(self.ffn, masks.neurons, strict=True):
            if not mask.all():
                keep_neurons(ffn, mask.nonzero().flatten().tolist())


def _repeated(mask: Tensor, *, rows: int) -> Tensor:
    return mask.expand(rows, -1).clone()


def _times(mask: Tensor, width: int) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """Multiply the input [B, L, units * width] by one number a unit."""

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        wide = mask.repeat_interleave(width, dim=-1)
        return (inputs[0] * (wide if mask.ndim == 1 else wide[:, None]), *inputs[1:])

    return hook


def by_length(calibration: Calibration, *, rows: int) -> list[list[int]]:
    """The numbers of the first ``rows`` rows in batches, short rows first: little is computed on padding."""
    count = len(calibration.first(rows))
    order = sorted(range(count), key=lambda i: length_of(calibration.rows[i]))
    return [order[start : start + BATCH] for start in range(0, count, BATCH)]


def batches_of(calibration: Calibration, *, rows: int) -> list[Batch]:
    """The rows of :func:`by_length`, padded."""
    return [padded([calibration.rows[i] for i in index]) for index in by_length(calibration, rows=rows)]


def check_settings(*, keep: float, round_to: int, rows: int) -> None:
    """What every pass over units asks of its settings. Raises InputError."""
    if not 0 < keep < 1 or round_to < 1 or rows < 1:
        raise InputError(
            f"keep={keep}, round_to={round_to}, rows={rows}",
            expected="keep between 0 and 1 (the share that stays), a multiple and a number of rows of at least 1",
            remedy="correct the recipe",
        )


def share(keep: float) -> str:
    """``keep`` for a label: ``"50%"``."""
    return f"{100 * keep:.3g}%"


def real_tokens(states: Tensor, batch: Batch, *, written: bool = False) -> Tensor:
    """[B, L, X] -> [T, X]: the tokens that are not padding; ``written`` as in :func:`hasten.passes.calibration.real`.

    A mixture's blocks take tokens in a row, [B L, X]. An expert's are fewer, and padding is not among them
    (:func:`hasten.passes.routing.unpadded`).
    """
    if states.ndim > 2:
        return states[real(batch, states, written=written)]
    mask = batch.get("attention_mask")
    return states if mask is None or len(states) != mask.numel() else states[mask.bool().flatten()]
