"""Make a model smaller for real: fewer layers, heads and neurons, or thin factors in place of a matrix.

Takes a loaded model (or the parts that an adapter names) and indices to keep, changes it in place. What
remains is dense and computes exactly what the whole model computes with the removed units held at zero.
Knows nothing of which units deserve to stay.

Legend: O outputs, I inputs of a linear layer, R rank.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hasten.models.adapter import Adapter, AttentionParts, FeedForward


class LowRankLinear(nn.Module):
    """x -> (x A^T) B^T + b with A [R, I] and B [O, R]: R (I + O) weights in place of I O."""

    def __init__(self, in_features: int, out_features: int, *, rank: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.first = nn.Linear(in_features, rank, bias=False)
        self.second = nn.Linear(rank, out_features, bias=bias)

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.second(self.first(inputs))
        return output


def keep_layers(model: nn.Module, adapter: Adapter, keep: Sequence[int]) -> None:
    """Leave only the layers ``keep`` (0 is the first), in this order; every config in the model follows."""
    layers = adapter.layers(model)
    chosen = [layers[i] for i in keep]
    del layers[:]
    layers.extend(chosen)
    for config in _configs(model):
        config.num_hidden_layers = len(chosen)  # families with another name for it map this one


def shortened(model: nn.Module, adapter: Adapter, *, layers: int) -> Any:
    """A deep copy with only the first ``layers`` layers; more than there are keeps them all."""
    short = copy.deepcopy(model)
    keep_layers(short, adapter, range(min(layers, len(adapter.layers(short)))))
    return short


def keep_heads(attention: AttentionParts, keep: Sequence[int]) -> None:
    """Leave only the heads ``keep`` of one attention: rows of Q, K, V and columns of the output projection."""
    units = torch.arange(attention.heads * attention.head_dim).view(attention.heads, attention.head_dim)
    index = units[list(keep)].flatten()
    for linear in (attention.query, attention.key, attention.value):
        keep_outputs(linear, index)
    keep_inputs(attention.output, index)


def keep_neurons(ffn: FeedForward, keep: Sequence[int]) -> None:
    """Leave only the neurons ``keep`` of one feed-forward block."""
    index = torch.as_tensor(list(keep), dtype=torch.long)
    keep_outputs(ffn.up, index)
    keep_inputs(ffn.down, index)


def keep_width(model: nn.Module, adapter: Adapter, keep: Sequence[int], *, head_dim: int) -> None:
    """Leave only the coordinates ``keep`` of the hidden states, a multiple of ``head_dim``; heads stay as they are."""
    index = torch.as_tensor(list(keep), dtype=torch.long)
    hidden = int(_configs(model)[0].hidden_size)
    inner: set[int] = set()
    for layer in adapter.layers(model):
        attention, ffn = adapter.attention(layer), adapter.ffn(layer)
        for linear in (attention.query, attention.key, attention.value, ffn.up):
            keep_inputs(linear, index)
        for linear in (attention.output, ffn.down):
            keep_outputs(linear, index)
        for norm in adapter.norms(layer):
            _keep_norm(norm, index)
        inner |= {id(module) for module in layer.modules()}
    for module in [m for m in model.modules() if id(m) not in inner]:
        _keep_outside(module, index, hidden=hidden)
    for config in _configs(model):
        config.hidden_size = len(index)
        config.num_attention_heads = len(index) // head_dim
        if getattr(config, "embedding_size", None) == hidden:
            config.embedding_size = len(index)


def _keep_outside(module: nn.Module, index: Tensor, *, hidden: int) -> None:
    """Embeddings, their norm, pooler and head: whatever has the hidden size on either side."""
    if isinstance(module, nn.Embedding) and module.embedding_dim == hidden:
        module.weight = nn.Parameter(module.weight.detach()[:, index].clone())
        module.embedding_dim = len(index)
    elif isinstance(module, nn.LayerNorm) and module.normalized_shape == (hidden,):
        _keep_norm(module, index)
    elif isinstance(module, nn.Linear):
        if module.in_features == hidden:
            keep_inputs(module, index)
        if module.out_features == hidden:
            keep_outputs(module, index)


def _keep_norm(norm: nn.LayerNorm, index: Tensor) -> None:
    norm.weight = nn.Parameter(norm.weight.detach()[index].clone())
    norm.bias = nn.Parameter(norm.bias.detach()[index].clone())
    norm.normalized_shape = (len(index),)


def _configs(model: nn.Module) -> list[Any]:
    """Every config in the model, the outermost first; most often they are one."""
    return list({id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values())


def keep_outputs(linear: nn.Linear, index: Tensor) -> None:
    """Rows ``index`` of the weight [O, I] and of the bias [O]."""
    linear.weight = nn.Parameter(linear.weight.detach()[index].clone())
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach()[index].clone())
    linear.out_features = len(index)


def keep_inputs(linear: nn.Linear, index: Tensor) -> None:
    """Columns ``index`` of the weight [O, I]."""
    linear.weight = nn.Parameter(linear.weight.detach()[:, index].clone())
    linear.in_features = len(index)


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` in the place that the dotted ``name`` says."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
