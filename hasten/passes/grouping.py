"""Fewer keys and values for the same queries: multi-head attention becomes grouped, or multi-query, attention.

Takes a wrapper of a decoder and how many key/value heads each layer keeps, gives the wrapper in which several queries
share one. What a decoder remembers of every token (its cache of keys and values) and reads again for each new one
shrinks by the same factor; queries and their output projection stay. It changes what the model says: let it learn back
with ``distill`` in the same recipe.

Source: Ainslie et al. 2023, "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints": the
projections of the heads of a group are averaged, which they found better than keeping one of them or starting anew.

Legend: K key/value heads, G groups that stay, D width of a head, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from hasten.models import FAMILIES, adapter_for
from hasten.models.adapter import Adapter, AttentionParts
from hasten.models.llama import LlamaLike
from hasten.models.prefix import has_prefixes
from hasten.models.settling import configs_of, say
from hasten.models.surgery import unit_rows
from hasten.passes.calibration import Calibration, Progress
from hasten.passes.family import adapter_of
from hasten.passes.settings import as_declared
from hasten.passes.units import share
from hasten.records import InputError, Rejected


@dataclass(frozen=True, slots=True)
class GqaConfig:
    """Keep the share ``keep`` of each layer's key/value heads, rounded down to a number that divides them and at least
    one; or exactly ``groups`` of them (1: multi-query attention)."""

    kind: ClassVar[str] = "gqa"
    keep: float = 0.5
    groups: int | None = None

    def __post_init__(self) -> None:
        as_declared(self)
        if not 0 < self.keep < 1 or (self.groups is not None and self.groups < 1):
            raise InputError(
                f"keep={self.keep}, groups={self.groups}",
                expected="keep between 0 and 1 (the share that stays), or a number of at least 1",
                remedy="correct the recipe",
            )

    @property
    def label(self) -> str:
        return f"{share(self.keep)} of the keys" if self.groups is None else f"{self.groups} keys a layer"


def share_keys(model: Any, config: GqaConfig, calibration: Calibration) -> Any:
    """The wrapper with fewer key/value heads; takes no data and no time.

    Raises Rejected for a family whose attention has a key for every query and no way to share one, for factorised
    layers and prefixes, and for a number that does not divide a layer's key/value heads or takes none away.
    """
    adapter = _adapter(model)
    layers = adapter.layers(model.hf)
    parts = [adapter.attention(layer) for layer in layers]
    if has_prefixes(model.hf):
        raise Rejected(config.kind, "sharing keys would leave prefixes of heads that are gone; tune a prefix after it")
    for number, own in enumerate(parts):
        if not all(isinstance(matrix, nn.Linear) for matrix in own.inputs):
            raise Rejected(
                config.kind, f"the keys of layer {number} are factorised; share keys before the low-rank pass"
            )
    counts = [_groups(own.groups, config, layer=number) for number, own in enumerate(parts)]
    for own, count in zip(parts, counts, strict=True):
        pool(own, groups=count)
    if len(set(counts)) == 1:
        say(configs_of(model.hf), num_key_value_heads=counts[0])
    adapter.settle(model.hf)
    before, after = (_remembered(parts, found) for found in ([own.groups for own in parts], counts))
    calibration.listen(Progress(f"keys and values of a token: {after} bytes in fp32, {before} before", 1, 1, note=True))
    return model


def _adapter(model: Any) -> Adapter:
    adapter = adapter_of(model, what="sharing of keys")
    if not isinstance(adapter, LlamaLike):
        able = [family for family in FAMILIES if isinstance(adapter_for(family), LlamaLike)]
        raise Rejected(
            "family", f"sharing of keys (gqa) cannot handle the family {adapter.family}, where every query has a key "
            f"of its own; it can handle {', '.join(able)}",
        )  # fmt: skip
    return adapter


def _groups(heads: int, config: GqaConfig, *, layer: int) -> int:
    """G of a layer with K = ``heads``."""
    count = config.groups
    if count is None:
        fitting = [n for n in range(1, heads + 1) if heads % n == 0 and n <= config.keep * heads]
        count = max(fitting, default=1)
    if heads % count:
        raise Rejected(config.kind, f"the {heads} key/value heads of layer {layer} cannot be shared out among {count}")
    if count == heads:
        raise Rejected(
            config.kind, f"layer {layer} has {heads} key/value heads, and {count} of them leave nothing to remove"
        )
    return count


def _remembered(parts: Sequence[AttentionParts], counts: Sequence[int]) -> int:
    """Bytes of a token's keys and values in fp32."""
    return sum(2 * 4 * count * own.head_dim for own, count in zip(parts, counts, strict=True))


@torch.no_grad()
def pool(attention: AttentionParts, *, groups: int) -> None:
    """Put the mean of K / G neighbouring key/value heads in the place of each of the G; queries stay as they are."""
    for linear, blocks in unit_rows(attention):
        if linear is attention.query and not attention.fused:
            continue
        pooled = blocks if not attention.fused else blocks[1:]  # queries come first in a fused matrix
        kept = [] if not attention.fused else [blocks[0].flatten()]
        rows = [block.view(groups, -1, attention.head_dim) for block in pooled]
        weight, bias = linear.weight, linear.bias
        linear.weight = nn.Parameter(torch.cat([*(weight[k] for k in kept), *(_mean(weight[r]) for r in rows)]))
        if bias is not None:
            linear.bias = nn.Parameter(torch.cat([*(bias[k] for k in kept), *(_mean(bias[r]) for r in rows)]))
        linear.out_features = len(linear.weight)


def _mean(values: torch.Tensor) -> torch.Tensor:
    """[G, K / G, D, ...] -> [G D, ...]"""
    return values.mean(dim=1).flatten(0, 1)
