"""Image encoders as flat programs: ViT and DeiT with their classifier.

Takes a task's wrapper, gives the program; it is given the numbers of every patch, and in front of an image's patches
rows of zeros for the model's own tokens. What is added to them is a table: the own tokens, then the patches' bias.

Legend: B images, H hidden size, P patches of an image, E own tokens in front of them, C outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hasten.models import adapter_for
from hasten.models.adapter import Adapter
from hasten.models.prefix import has_prefixes
from hasten.native.program import Activation, Features, Linear, Pool
from hasten.records import Rejected
from hasten.runtimes.native_draft import Draft, activation_of, check_matrices
from hasten.runtimes.native_encoders import Lowered, attended, begun
from hasten.runtimes.native_weights import Precision

# Family -> the names of its own tokens, first to last.
_TOKENS: Mapping[str, tuple[str, ...]] = {"vit": ("cls_token",), "deit": ("cls_token", "distillation_token")}


@dataclass(frozen=True, slots=True)
class Pictures:
    """What an image is cut into: ``shape`` (channels, height, width), ``patch`` (height, width), ``own`` tokens E."""

    shape: tuple[int, int, int]
    patch: tuple[int, int]
    own: int


def lowered_images(wrapper: Any, *, precision: Precision, group: int, fitted: bool = False) -> tuple[Lowered, Pictures]:
    """The program of a wrapper around a classifier of images. Raises Rejected."""
    model, family = wrapper.hf, str(wrapper.hf.config.model_type)
    adapter = adapter_for(family)
    if family not in _TOKENS or adapter is None:
        raise Rejected(
            "export", f"of models of images the native engine runs {', '.join(_TOKENS)}, and this is {family}"
        )
    head = getattr(model, "classifier", None)
    if not type(model).__name__.endswith("ForImageClassification") or not isinstance(head, nn.Linear):
        raise Rejected("export", f"the native engine has no head for {type(model).__name__}")
    if has_prefixes(model):
        raise Rejected("export", "learnt prefixes stand in front of the keys, and the native engine has no place there")
    draft = begun(model, precision=precision, group=group, fitted=fitted)
    states, hidden, pictures = _embedded(draft, adapter.embeddings(model), _TOKENS[family])
    activation = activation_of(model.config)
    for layer in adapter.layers(model):
        _layer(draft, adapter, layer, states=states, hidden=hidden, activation=activation)
    first = draft.buffer("pooled", hidden, "sequence")
    draft.add(Pool(states, first, "first"))
    draft.norm(model.base_model.layernorm, input=first, output=first)
    output = draft.buffer("output", head.out_features, "sequence")
    draft.head(head, input=first, output=output)
    return Lowered(draft.program(output), per_token=False, notes=draft.notes), pictures


def _embedded(draft: Draft, block: Any, names: tuple[str, ...]) -> tuple[int, int, Pictures]:
    cut = block.patch_embeddings.projection
    hidden, channels, *patch = cut.weight.shape
    height, width = block.patch_embeddings.image_size
    positions = block.position_embeddings[0]
    count = (height // patch[0]) * (width // patch[1])
    if len(positions) != len(names) + count or cut.stride != cut.kernel_size or cut.padding not in ((0, 0), "valid"):
        raise Rejected("export", f"{len(positions)} positions for {count} patches and {len(names)} own tokens")
    bias = torch.zeros(hidden) if cut.bias is None else cut.bias.detach()
    table = torch.stack([*(getattr(block, name).detach()[0, 0] for name in names), bias])
    given = draft.buffer("given", channels * patch[0] * patch[1])
    states = draft.buffer("states", hidden)
    draft.add(Features(given))
    draft.embed(states, draft.numbers(table), positions=draft.numbers(positions))
    draft.add(Linear(given, states, draft.numbers(cut.weight.detach().flatten(start_dim=1)), residual=states))
    return states, hidden, Pictures((channels, height, width), (patch[0], patch[1]), len(names))


def _layer(
    draft: Draft, adapter: Adapter, layer: nn.Module, *, states: int, hidden: int, activation: Activation
) -> None:
    """A layer with its norms in front of both sublayers; ``states`` [T, H] in place."""
    attention, ffn, norms = adapter.attention(layer), adapter.ffn(layer), adapter.norms(layer)
    check_matrices([*attention.inputs, attention.output, *ffn.inputs, ffn.down])
    normed = draft.buffer("normed", hidden)
    draft.norm(norms[0], input=states, output=normed)
    context = attended(draft, attention, normed)
    draft.matrix(attention.output, input=context, output=states, residual=states)
    draft.norm(norms[1], input=states, output=normed)
    inner = draft.buffer("inner", ffn.neurons)
    draft.matrix(ffn.up, input=normed, output=inner, activation=activation)
    draft.matrix(ffn.down, input=inner, output=states, residual=states)
