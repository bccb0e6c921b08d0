"""What transformers keeps beside the weights: configs and modules told how many layers there now are.

Takes a model whose layers have changed, changes the numbers that follow from them. Knows nothing of families: each
adapter says which of these its own needs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn


def configs_of(model: nn.Module) -> list[Any]:
    """Every config in the model, the outermost first; most often they are one."""
    return list({id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values())


def say(configs: Iterable[Any], **fields: Any) -> None:
    """Write ``fields`` into the configs that have them, and into no other."""
    for config in configs:
        for name, value in fields.items():
            if hasattr(config, name):
                setattr(config, name, value)


def number_layers(layers: nn.ModuleList) -> None:
    """Count ``layer_idx`` from 0 again: it is the layer's place in a cache of keys and values."""
    for number, layer in enumerate(layers):
        for module in layer.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = number  # type: ignore[assignment]


def layer_kinds(layers: Iterable[Any]) -> list[str]:
    """``layer_types`` of a config, as the attentions know it: ``"full_attention"`` or ``"sliding_attention"``."""
    return [_kind(layer.self_attn) for layer in layers]


def _kind(own: Any) -> str:
    sliding = getattr(own, "sliding_window", None) is not None
    return str(getattr(own, "layer_type", None) or ("sliding_attention" if sliding else "full_attention"))
