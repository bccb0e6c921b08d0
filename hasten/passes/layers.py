"""Depth pruning: leave whole layers out.

Takes a wrapper and how many layers to keep; gives the wrapper with fewer. Which ones go is decided by block
influence, by the loss, or evenly. Of an encoder-decoder the encoder's layers are meant.

Sources: block influence is ShortGPT (Men et al. 2024), BI_l = 1 - E cos(h_l, h_{l+1}) over tokens; the greedy choice
removes, one at a time, the layer whose removal changes the outputs least (as in Sajjad et al. 2023's task-driven
strategies); keeping evenly spaced layers is how DistilBERT's student was initialised (Sanh et al. 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from hasten.models.surgery import keep_layers, set_layers, stack_of
from hasten.passes.calibration import Batch, Calibration, real
from hasten.passes.family import adapter_of
from hasten.passes.hooks import hooked
from hasten.passes.settings import as_declared
from hasten.records import InputError, Rejected

_ROWS = 256
_BATCH = 32


@dataclass(frozen=True, slots=True)
class LayersConfig:
    """Keep ``count`` layers, chosen ``by``: ``"even"`` spacing that keeps the last layer, block ``"influence"``, the
    ``"loss"`` (greedy, against the model's own outputs), or exactly those in ``keep`` (then ``count`` must agree)."""

    kind: ClassVar[str] = "layers"
    count: int
    by: Literal["even", "influence", "loss"] = "even"
    keep: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        as_declared(self)
        if self.keep is not None and self.by != "even":
            raise InputError(
                f"keep={self.keep} with by={self.by!r}", expected="one of the two: layers named, or chosen by a score",
                remedy="correct the recipe",
            )  # fmt: skip
        named = () if self.keep is None else self.keep
        if self.count < 1 or (self.keep is not None and len(named) != self.count) or min(named, default=0) < 0:
            raise InputError(
                f"count={self.count} with keep={self.keep}",
                expected="at least one layer, and as many in keep, counted from 0, as count says",
                remedy="correct the recipe",
            )

    @property
    def label(self) -> str:
        how = {"even": "", "influence": " by influence", "loss": " by loss"}[self.by]
        return f"{self.count} layer{'s' * (self.count != 1)}{how}"


def drop_layers(model: Any, config: LayersConfig, calibration: Calibration) -> Any:
    """The wrapper with ``config.count`` layers left, in their old order.

    Costs nothing for ``even``, one pass over 256 rows for ``influence``, and about n (n - count) / 2 passes for
    ``loss``. Raises Rejected for a family without an adapter, when there is nothing to remove, and when layers that
    share their weights are to be told apart.
    """
    adapter = adapter_of(model, what="layer dropping")
    stack = stack_of(model.hf, adapter, None)
    total = stack.depth
    if config.count >= total:
        raise Rejected("layers", f"{config.count} layers of {total} leave nothing to remove")
    if stack.shared and (config.by != "even" or config.keep is not None):
        raise Rejected(
            "layers", f"the layers of this {adapter.family} share their weights, so none of them can be chosen: "
            "give only how many of them are to run",
        )  # fmt: skip
    keep_layers(model.hf, adapter, _chosen(model, config, calibration, total))
    return model


def _chosen(model: Any, config: LayersConfig, calibration: Calibration, total: int) -> Sequence[int]:
    if config.keep is not None:
        if max(config.keep) >= total or list(config.keep) != sorted(set(config.keep)):
            raise Rejected("layers", f"keep={config.keep}: layers 0 to {total - 1} exist, each at most once, in order")
        return config.keep
    if config.by == "even":
        return even(total, config.count)
    batches = [batch for batch, _ in calibration.batches(batch=_BATCH, limit=_ROWS)]
    if config.by == "influence":
        scores = block_influence(model, batches)
        return sorted(sorted(range(total), key=lambda i: -scores[i])[: config.count])
    return greedy(model, batches, count=config.count)


def even(total: int, count: int) -> list[int]:
    """Evenly spaced layers that end with the last: 3 of 6 are 1, 3, 5."""
    return [round((i + 1) * total / count) - 1 for i in range(count)]


@torch.inference_mode()
def block_influence(model: Any, batches: Sequence[Batch]) -> list[float]:
    """BI of every layer: 1 - mean cosine between a real token's state before and after it.

    Taken at the layers themselves: of a decoder's own list of states the last has been through the final norm.
    """
    layers = adapter_of(model, what="block influence").layers(model.hf)
    current: list[Batch] = [{}]
    sums, tokens = [0.0] * len(layers), [0] * len(layers)

    def watch(number: int) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            before: Tensor = args[0] if args else named["hidden_states"]
            after: Tensor = output[0] if isinstance(output, tuple) else output
            mask = real(current[0], before)
            sums[number] += float(nn.functional.cosine_similarity(before[mask], after[mask], dim=-1).double().sum())
            tokens[number] += int(mask.sum())

        return hook

    with hooked(layer.register_forward_hook(watch(i), with_kwargs=True) for i, layer in enumerate(layers)):
        for batch in batches:
            current[0] = batch
            model(**batch)
    return [1.0 - total / count for total, count in zip(sums, tokens, strict=True)]


@torch.inference_mode()
def greedy(model: Any, batches: Sequence[Batch], *, count: int) -> list[int]:
    """Remove one layer after the other, each time the one without which the outputs move least (squared)."""
    adapter = adapter_of(model, what="layer dropping")
    layers = adapter.layers(model.hf)
    whole = list(layers)
    targets = [model.rows(model(**batch), batch) for batch in batches]
    kept = list(range(len(whole)))
    while len(kept) > count:
        errors = {}
        for candidate in kept:
            set_layers(model.hf, adapter, layers, [whole[i] for i in kept if i != candidate])
            moved = (model.rows(model(**batch), batch) - target for batch, target in zip(batches, targets, strict=True))
            errors[candidate] = sum(float(difference.square().sum()) for difference in moved)
        kept.remove(min(kept, key=lambda i: errors[i]))
    set_layers(model.hf, adapter, layers, whole)
    return kept
