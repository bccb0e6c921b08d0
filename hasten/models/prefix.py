"""Learnt keys and values in front of every layer's own: how a model with tuned prefixes computes.

Takes a model and one prefix a layer, changes it in place: every token of every row also attends to the prefix. The
prefixes are parameters of the attention modules, so they are saved, opened, exported and counted like any weight.

Legend: B rows, L tokens, A heads, P tokens of the prefix, D width of a head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

NAME = "hasten_prefix"


def attach_prefixes(model: Any, modules: Sequence[nn.Module], prefixes: Sequence[Tensor]) -> None:
    """Give each self-attention module its prefix [2, A, P, D] (keys, values)."""
    for module, prefix in zip(modules, prefixes, strict=True):
        module.register_parameter(NAME, nn.Parameter(prefix.detach().clone()))
    inject_prefixes(model, modules)


def inject_prefixes(model: Any, modules: Sequence[nn.Module]) -> list[RemovableHandle]:
    """Make the attention modules look at their ``hasten_prefix``, and the mask let them; gives what undoes it.

    The embeddings know nothing of prefixes, so positions stay what they were.
    """
    hooks = [module.register_forward_pre_hook(_see_prefix, with_kwargs=True) for module in modules]
    return [*hooks, model.base_model.register_forward_pre_hook(_widen_mask, with_kwargs=True)]


def has_prefixes(model: nn.Module) -> bool:
    """Was a prefix attached to any of its attentions?"""
    return any(hasattr(module, NAME) for module in model.modules())


def attach_stored(model: Any, weights: Mapping[str, Tensor]) -> None:
    """Prepare a fresh model for the prefixes among its stored weights."""
    found = {name.removesuffix(f".{NAME}"): tensor for name, tensor in weights.items() if name.endswith(f".{NAME}")}
    if found:
        attach_prefixes(model, [model.get_submodule(name) for name in found], list(found.values()))


class _PrefixCache:
    """What a self-attention takes for keys and values of earlier tokens."""

    def __init__(self, prefix: Tensor) -> None:
        self.prefix = prefix

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """[B, A, L, D] each -> [B, A, P + L, D]."""
        before = self.prefix.unsqueeze(1).expand(-1, keys.shape[0], -1, -1, -1)
        return torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2)


def _see_prefix(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, {**kwargs, "past_key_values": _PrefixCache(getattr(module, NAME))}


def _widen_mask(body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """[B, L] of zeros and ones -> [B, 1, 1, P + L] of what is added to the scores."""
    prefix = next(getattr(m, NAME) for m in body.modules() if hasattr(m, NAME))
    mask = kwargs["attention_mask"]
    seen = torch.cat([mask.new_ones(mask.shape[0], prefix.shape[2]), mask], dim=1).to(prefix.dtype)
    return args, {**kwargs, "attention_mask": ((1.0 - seen) * torch.finfo(prefix.dtype).min)[:, None, None, :]}
