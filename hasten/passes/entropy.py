"""Heads pruned by the entropy of their attention, neurons by their mean activation: kept for comparison.

Takes a wrapper and the share of the encoder's MACs to keep, gives the wrapper with fewer heads and neurons. A head
that spreads its attention evenly goes first: E[-sum_j a_ij log a_ij / log n] over real query tokens i, n real keys
(of a decoder those up to i, or in its window). Entropy says nothing of neurons, so these go by mean |activation|.
Neither looks at the loss: a head may be sharp and useless, or even and needed. Prefer the ``fisher`` pass.

Source: attention entropy as in Clark et al. 2019, "What Does BERT Look At?", and Voita et al. 2019.

Legend: B rows, L tokens, A heads, N neurons.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hasten.models import KINDS
from hasten.passes.calibration import Batch, Calibration, real
from hasten.passes.family import check_in_turn, kinds_of
from hasten.passes.hooks import catching, hooked
from hasten.passes.settings import as_declared
from hasten.passes.unit_budget import cut_evenly
from hasten.passes.units import PerUnit, Units, batches_of, check_settings, real_tokens, share
from hasten.records import Rejected


@dataclass(frozen=True, slots=True)
class EntropyConfig:
    """Keep the share ``keep`` of the encoder layers' MACs, FFN widths in multiples of ``round_to``."""

    kind: ClassVar[str] = "entropy"
    keep: float = 0.6
    round_to: int = 32
    rows: int = 256

    def __post_init__(self) -> None:
        as_declared(self)
        check_settings(keep=self.keep, round_to=self.round_to, rows=self.rows)

    @property
    def label(self) -> str:
        return f"entropy {share(self.keep)} MACs"


def prune_entropy(model: Any, config: EntropyConfig, calibration: Calibration) -> Any:
    """The wrapper with the sharpest heads and the most active neurons; one forward pass a row, no gradients.

    Raises Rejected for a family without an adapter, factorised layers, or too small a budget.
    """
    units = Units(model, kind=config.kind, what="entropy pruning")
    check_in_turn(model, what="entropy pruning")
    if kinds := kinds_of(model):
        raise Rejected(
            "family", f"entropy pruning weighs heads by what they see, and layers differ in that ({', '.join(kinds)})"
        )
    scores = sharpness(units, batches_of(calibration, rows=config.rows))
    cut_evenly(units, scores, calibration, keep=config.keep, round_to=config.round_to, kind=config.kind)
    return model


@torch.no_grad()
def sharpness(units: Units, batches: list[Batch]) -> PerUnit:
    """1 - mean normalised attention entropy of every head, and mean |activation| of every neuron."""
    sums = units.ones().map(torch.zeros_like)
    queries = tokens = 0
    backwards = KINDS[units.adapter.family] == "decoder"
    window = getattr(units.model.hf.config, "sliding_window", None) if backwards else None
    caught: dict[int, Tensor] = {}
    hooks = (ffn.down.register_forward_pre_hook(catching(caught, layer)) for layer, ffn in enumerate(units.ffn))
    with hooked(hooks), eager_attention(units.model.hf):
        for batch in batches:
            attentions = units.model.hf.base_model(**batch, output_attentions=True).attentions
            mask = real(batch, attentions[0][:, 0]).long()
            keys = visible(mask, backwards=backwards, window=window)
            for layer, attention in enumerate(attentions):
                groups = len(sums.heads[layer])  # heads that share a key go together
                sums.heads[layer] += normalised_entropy(attention, keys).view(groups, -1).mean(dim=1)
                sums.neurons[layer] += real_tokens(caught[layer], batch).abs().sum(dim=0)
            queries += int((keys > 1).sum())
            tokens += int(mask.sum())
    return PerUnit([1.0 - h / max(queries, 1) for h in sums.heads], [n / tokens for n in sums.neurons])


def visible(mask: Tensor, *, backwards: bool = False, window: int | None = None) -> Tensor:
    """How many real keys each query sees [B, L], none for padding: all of its row, or those up to itself (at most a
    ``window`` of them); mask [B, L] with padding on the right."""
    counts = mask.cumsum(dim=1) if backwards else mask.sum(dim=1, keepdim=True)
    return mask * (counts if window is None else counts.clamp(max=window))


def normalised_entropy(attention: Tensor, keys: Tensor) -> Tensor:
    """Sum over real queries of -sum_j a log a / log n [A]; attention [B, A, L, L], n the ``keys`` [B, L] that a query
    sees. A query of one key has nothing to spread over and counts nothing."""
    entropy = -torch.special.xlogy(attention, attention).sum(dim=-1)
    weight = torch.where(keys > 1, 1.0 / keys.clamp(min=2).log(), 0.0)
    total: Tensor = (entropy * weight[:, None]).sum(dim=(0, 2))
    return total


@contextmanager
def eager_attention(hf: Any) -> Iterator[None]:
    """Within, the transformers model computes attention probabilities; fused kernels never form them."""
    before = hf.config._attn_implementation
    hf.set_attn_implementation("eager")
    try:
        yield
    finally:
        hf.set_attn_implementation(before)
