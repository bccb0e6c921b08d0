"""Make a model smaller for real: fewer layers, heads and neurons, or thin factors in place of a matrix.

Takes a loaded model (or the parts that an adapter names) and indices to keep, changes it in place. What
remains is dense and computes exactly what the whole model computes with the removed units held at zero.
Knows nothing of which units deserve to stay.

Legend: O outputs, I inputs of a linear layer, R rank, G groups of an attention (heads, where each has its own key).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hasten.models.adapter import Adapter, AttentionParts, FeedForward, Stack
from hasten.models.settling import configs_of, say
from hasten.records import InputError, Rejected


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


def keep_layers(model: nn.Module, adapter: Adapter, keep: Sequence[int], *, stack: str | None = None) -> None:
    """Leave only the layers ``keep`` (0 is the first) of one stack, in this order; every config in the model follows.

    Layers that share their weights cannot be told apart: there ``keep`` only says how many of them run. Raises
    InputError for a stack that the model does not have, Rejected where the shared layers are several.
    """
    found = stack_of(model, adapter, stack)
    if found.shared:
        if len(found.layers) > 1:
            raise Rejected("layers", f"the {len(found.layers)} shared layers of this {adapter.family} run in turn")
        say(configs_of(model), num_hidden_layers=len(keep))
        return
    set_layers(model, adapter, found.layers, [found.layers[i] for i in keep])


def set_layers(model: nn.Module, adapter: Adapter, layers: nn.ModuleList, wanted: Sequence[nn.Module]) -> None:
    """Make ``layers``, those of one stack of ``model``, these ones in this order; what follows from it follows."""
    if wanted and wanted[0] is not layers[0]:
        adapter.lead(layers[0], wanted[0])
    del layers[:]
    layers.extend(wanted)
    adapter.settle(model)


def stack_of(model: nn.Module, adapter: Adapter, name: str | None) -> Stack:
    """The stack of that name, or the first. Raises InputError."""
    stacks = adapter.stacks(model)
    found = next((stack for stack in stacks if name in (None, stack.name)), None)
    if found is None:
        raise InputError(
            f"stack={name!r}", expected=f"one of {', '.join(stack.name for stack in stacks)}",
            remedy=f"name a stack that a {adapter.family} has",
        )  # fmt: skip
    return found


def shortened(model: nn.Module, adapter: Adapter, *, layers: int) -> Any:
    """A deep copy with only the first ``layers`` layers; more than there are keeps them all."""
    short = copy.deepcopy(model)
    keep_layers(short, adapter, range(min(layers, stack_of(short, adapter, None).depth)))
    return short


def keep_heads(attention: AttentionParts, keep: Sequence[int]) -> None:
    """Leave only the groups ``keep`` of one attention: a head each, or a key/value head with all its queries.

    Raises Rejected where the family's heads cannot be taken out.
    """
    if attention.fixed is not None:
        raise Rejected("family", attention.fixed)
    index = torch.as_tensor(list(keep), dtype=torch.long)
    for linear, blocks in unit_rows(attention):
        keep_outputs(linear, torch.cat([block[index].flatten() for block in blocks]))
    columns = torch.arange(attention.groups * attention.group_dim).view(attention.groups, -1)
    keep_inputs(attention.output, columns[index].flatten())
    if attention.table is not None:
        heads = torch.arange(attention.heads).view(attention.groups, -1)
        keep_columns(attention.table, heads[index].flatten())
    if attention.settle is not None:
        attention.settle()


def unit_rows(attention: AttentionParts) -> list[tuple[nn.Linear, list[Tensor]]]:
    """Which rows [G, n] of each matrix in front of the attention belong to its G groups.

    One block of rows a matrix; three of the one where queries, keys and values are fused.
    """
    groups, wide, narrow = attention.groups, attention.group_dim, attention.head_dim
    query = torch.arange(groups * wide).view(groups, wide)
    key = torch.arange(groups * narrow).view(groups, narrow)
    if attention.fused:
        return [(attention.query, [query, groups * wide + key, groups * (wide + narrow) + key])]
    return [(attention.query, [query]), (attention.key, [key]), (attention.value, [key])]


def keep_neurons(ffn: FeedForward, keep: Sequence[int]) -> None:
    """Leave only the neurons ``keep`` of one feed-forward block."""
    index = torch.as_tensor(list(keep), dtype=torch.long)
    for linear in ffn.inputs:
        keep_outputs(linear, torch.cat([index, ffn.neurons + index]) if ffn.fused else index)
    keep_inputs(ffn.down, index)


def keep_width(model: nn.Module, adapter: Adapter, keep: Sequence[int], *, head_dim: int) -> None:
    """Leave only the coordinates ``keep`` of the hidden states, a multiple of ``head_dim``; heads stay as they are.

    RMS norms then compute what they would with the other coordinates at zero. Raises Rejected for a family whose
    width cannot change, and for one that its heads do not divide where the config wants that.
    """
    index = torch.as_tensor(list(keep), dtype=torch.long)
    configs = configs_of(model)
    hidden = int(configs[0].hidden_size)
    _check_width(adapter, configs[0], len(index))
    inner: set[int] = set()
    for layer in [layer for stack in adapter.stacks(model) for layer in stack.layers]:
        attention = adapter.attention(layer)
        ffns = adapter.ffns(layer)
        for linear in (*attention.inputs, *(linear for ffn in ffns for linear in ffn.inputs)):
            keep_inputs(linear, index)
        for linear in (attention.output, *(ffn.down for ffn in ffns)):
            keep_outputs(linear, index)
        for norm in adapter.norms(layer):
            _keep_norm(norm, index)
        for module in layer.modules():
            _keep_own(module, index, hidden=hidden)
        inner |= {id(module) for module in layer.modules()}
    for module in [m for m in model.modules() if id(m) not in inner]:
        _keep_outside(module, index, hidden=hidden)
    say_width(configs, len(index), head_dim=head_dim)
    _tie_again(model)
    adapter.settle(model)


def say_width(configs: Sequence[Any], width: int, *, head_dim: int) -> None:
    """Write the new size of the hidden states into the configs; heads stay as wide as they are."""
    for config in configs:
        hidden, config.hidden_size = config.hidden_size, width
        if getattr(config, "head_dim", None) is None:
            config.num_attention_heads = width // head_dim
        for name in ("embedding_size", "pooler_output_size"):
            if getattr(config, name, None) == hidden:
                setattr(config, name, width)


def _check_width(adapter: Adapter, config: Any, width: int) -> None:
    if adapter.rigid is not None:
        raise Rejected("narrow", adapter.rigid)
    if getattr(config, "head_dim", None) is not None and width % int(config.num_attention_heads):
        raise Rejected("narrow", f"a width of {width} is no multiple of the {config.num_attention_heads} heads")


def _tie_again(model: Any) -> None:
    """Weights that were one before are one again."""
    if getattr(model, "all_tied_weights_keys", None):
        model.tie_weights()


def _keep_outside(module: nn.Module, index: Tensor, *, hidden: int) -> None:
    """Embeddings, their norm, pooler and head: whatever has the hidden size on either side."""
    if isinstance(module, nn.Embedding) and module.embedding_dim == hidden:
        keep_columns(module, index)
    elif isinstance(module, nn.Linear):
        if module.in_features in (hidden, 2 * hidden):
            keep_inputs(module, side_by_side(index, module.in_features, hidden=hidden))
        if module.out_features == hidden:
            keep_outputs(module, index)
    elif isinstance(module, nn.Conv2d) and module.out_channels == hidden:
        _keep_channels(module, index)
    elif (isinstance(module, nn.LayerNorm) or is_rms(module)) and module.weight.shape == (hidden,):
        _keep_norm(module, index)
    else:
        _keep_own(module, index, hidden=hidden)


def side_by_side(index: Tensor, width: int, *, hidden: int) -> Tensor:
    """``index`` into each of the hidden states that an input of ``width`` is made of: DINOv2's head reads two."""
    return torch.cat([index + start for start in range(0, width, hidden)])


def _keep_channels(patches: nn.Conv2d, index: Tensor) -> None:
    """Outputs ``index`` of what makes states of an image's patches."""
    patches.weight = nn.Parameter(patches.weight.detach()[index].clone())
    if patches.bias is not None:
        patches.bias = nn.Parameter(patches.bias.detach()[index].clone())
    patches.out_channels = len(index)


def _keep_own(module: nn.Module, index: Tensor, *, hidden: int) -> None:
    """Bare parameters [..., H]: an image model's own tokens and positions, the scale of a sublayer."""
    if isinstance(module, (nn.Linear, nn.Embedding, nn.Conv2d, nn.LayerNorm)) or is_rms(module):
        return
    for name, own in list(module.named_parameters(recurse=False)):
        if own.ndim and own.shape[-1] == hidden:
            setattr(module, name, nn.Parameter(own.detach()[..., index].clone()))


def is_rms(module: nn.Module) -> bool:
    """Only factors and no shift: a norm by the root of the mean square, under any of its names."""
    return type(module).__name__.endswith(("RMSNorm", "T5LayerNorm"))


def _keep_norm(norm: nn.Module, index: Tensor) -> None:
    weight: Tensor = norm.weight  # type: ignore[assignment]
    if is_rms(norm):
        # The mean is over fewer coordinates, so it is larger by this factor when the others are zero.
        norm.weight = nn.Parameter(weight.detach()[index] * (len(weight) / len(index)) ** 0.5)
        return
    assert isinstance(norm, nn.LayerNorm)
    norm.weight = nn.Parameter(weight.detach()[index].clone())
    norm.bias = nn.Parameter(norm.bias.detach()[index].clone())
    norm.normalized_shape = (len(index),)


def keep_columns(table: nn.Embedding, index: Tensor) -> None:
    """Columns ``index`` of a table [rows, columns]."""
    table.weight = nn.Parameter(table.weight.detach()[:, index].clone())
    table.embedding_dim = len(index)


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
