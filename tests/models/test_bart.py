"""BART and Marian: two stacks of post-norm layers, with an attention between them."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from family_cases import adapter, close, layer, mask_heads, mask_neurons, reopened, spoken, without_layers
from tiny_models import language_model
from torch import nn

from hasten.models.surgery import keep_heads, keep_neurons, keep_width
from hasten.records import Rejected

FAMILIES = ("bart", "marian")


@pytest.mark.parametrize("family", FAMILIES)
def test_parts(family: str) -> None:
    model = language_model(family)
    own = adapter(model)
    assert own.family == family
    stacks = own.stacks(model)
    assert [(stack.name, len(stack.layers)) for stack in stacks] == [("encoder", 3), ("decoder", 2)]
    first, last = stacks[0].layers[0], stacks[1].layers[1]
    crossing = own.cross_attention(last)
    assert own.cross_attention(first) is None
    assert crossing is not None
    for parts in (own.attention(first), own.attention(last), crossing):
        assert (parts.heads, parts.groups, parts.head_dim, parts.cross) == (4, 4, 8, parts is crossing)
    assert own.ffn(first).neurons == own.ffn(last).neurons == 48
    assert [len(own.norms(each)) for each in (first, last)] == [2, 3]
    assert not own.norm_first
    tables = [m for m in own.embeddings(model).modules() if isinstance(m, nn.Embedding)]
    assert len(tables) == (4 if family == "bart" else 2)  # Marian's positions are computed


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_of_either_stack(family: str, stack: str, tmp_path: Path) -> None:
    keep = range(1, 3 if stack == "encoder" else 2)
    cut = without_layers(language_model(family), keep, tmp_path, stack=stack)
    assert (cut.config.encoder_layers, cut.config.decoder_layers) == ((2, 2) if stack == "encoder" else (3, 1))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_heads_and_neurons_of_both_stacks(family: str, implementation: str, tmp_path: Path) -> None:
    masked = language_model(family)
    masked.set_attn_implementation(implementation)
    cut, whole = copy.deepcopy(masked), copy.deepcopy(masked)
    own = adapter(cut)
    for model, heads, neurons in ((masked, mask_heads, mask_neurons), (cut, keep_heads, keep_neurons)):
        crossing = own.cross_attention(layer(model, 0, stack="decoder"))
        assert crossing is not None
        heads(crossing, [1])
        heads(own.attention(layer(model, 1)), [0, 3])
        heads(own.attention(layer(model, 1, stack="decoder")), [2, 3])
        neurons(own.ffn(layer(model, 2)), range(9))
        neurons(own.ffn(layer(model, 0, stack="decoder")), range(5, 48))
    assert close(cut, masked)
    assert not close(cut, whole)
    assert spoken(cut, cached=True) == spoken(cut, cached=False)
    assert close(reopened(cut, tmp_path), cut)


@pytest.mark.parametrize("family", FAMILIES)
def test_another_width_is_refused(family: str) -> None:
    model = language_model(family)
    with pytest.raises(Rejected, match="root of its width"):
        keep_width(model, adapter(model), range(24), head_dim=8)
