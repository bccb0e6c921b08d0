"""T5 and Flan-T5: two stacks, biases that all layers share, and heads that go once each layer has its own."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from family_cases import (
    adapter,
    close,
    layer,
    logits,
    mask_heads,
    mask_neurons,
    reopened,
    skipped,
    spoken,
    without_layers,
)
from tiny_models import language_model, seq2seq_config, shaken

from hasten.models.surgery import keep_heads, keep_layers, keep_neurons, keep_width
from hasten.records import InputError, Rejected

FAMILIES = ("t5", "flan-t5")


@pytest.mark.parametrize("family", FAMILIES)
def test_parts(family: str) -> None:
    model = language_model(family)
    own = adapter(model)
    stacks = own.stacks(model)
    assert [(stack.name, len(stack.layers)) for stack in stacks] == [("encoder", 3), ("decoder", 2)]
    assert own.layers(model) is stacks[0].layers
    first, last = stacks[0].layers[0], stacks[1].layers[1]
    assert own.cross_attention(first) is None
    crossing = own.cross_attention(last)
    assert crossing is not None
    assert crossing.cross
    assert crossing.fixed is None
    for parts in (own.attention(first), own.attention(last), crossing):
        assert (parts.heads, parts.groups, parts.head_dim, parts.cross) == (4, 4, 8, parts is crossing)
    gated = family == "flan-t5"
    assert (own.ffn(first).neurons, len(own.ffn(first).inputs)) == (48, 1 + gated)
    assert [len(own.norms(each)) for each in (first, last)] == [2, 3]
    assert own.norm_first
    assert own.embeddings(model).weight.shape == (66, 32)


def test_an_encoder_alone() -> None:
    import transformers as t

    torch.manual_seed(0)
    model = shaken(t.T5EncoderModel(seq2seq_config("t5")).eval())
    own = adapter(model)
    assert [stack.name for stack in own.stacks(model)] == ["encoder"]
    keep_layers(model, own, [1, 2])
    assert model.config.num_layers == 2
    assert torch.isfinite(model(input_ids=torch.tensor([[4, 5, 6]])).last_hidden_state).all()


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_layers_of_either_stack(stack: str, tmp_path: Path) -> None:
    """Without the first layer the biases stay: they belong to the place."""
    keep = range(1, 3 if stack == "encoder" else 2)
    cut = without_layers(language_model("flan-t5"), keep, tmp_path, stack=stack)
    assert (cut.config.num_layers, cut.config.num_decoder_layers) == ((2, 2) if stack == "encoder" else (3, 1))


def test_an_unknown_stack_is_refused() -> None:
    model = language_model("t5")
    with pytest.raises(InputError, match="encoder, decoder"):
        keep_layers(model, adapter(model), [0], stack="middle")


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_heads_go_once_each_layer_has_its_own_biases(family: str, implementation: str, tmp_path: Path) -> None:
    whole = language_model(family)
    whole.set_attn_implementation(implementation)
    own = adapter(whole)
    with pytest.raises(Rejected, match="same biases"):
        keep_heads(own.attention(layer(whole, 0)), [0])
    loose = copy.deepcopy(whole)
    own.loosen(loose)
    assert close(loose, whole)
    assert spoken(loose, cached=True) == spoken(whole, cached=True)
    own.loosen(loose)  # once more changes nothing
    masked, cut = copy.deepcopy(whole), copy.deepcopy(loose)
    for stack, number, keep in (("encoder", 0, [1, 2]), ("encoder", 2, [0]), ("decoder", 1, [0, 3])):
        mask_heads(own.attention(layer(masked, number, stack=stack)), keep)
        keep_heads(own.attention(layer(cut, number, stack=stack)), keep)
    assert close(cut, masked)
    assert not close(cut, whole)
    assert spoken(cut, cached=True) == spoken(cut, cached=False)
    assert close(reopened(cut, tmp_path), cut)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_heads_between_the_stacks_and_neurons(family: str, implementation: str, tmp_path: Path) -> None:
    masked = language_model(family)
    masked.set_attn_implementation(implementation)
    cut, whole = copy.deepcopy(masked), copy.deepcopy(masked)
    own = adapter(cut)
    for number, keep in ((0, [2]), (1, [0, 1, 3])):
        for model, change in ((masked, mask_heads), (cut, keep_heads)):
            parts = own.cross_attention(layer(model, number, stack="decoder"))
            assert parts is not None
            change(parts, keep)
    mask_neurons(own.ffn(layer(masked, 1, stack="decoder")), range(20))
    keep_neurons(own.ffn(layer(cut, 1, stack="decoder")), range(20))
    assert close(cut, masked)
    assert not close(cut, whole)
    assert spoken(cut, cached=True) == spoken(cut, cached=False)
    assert close(reopened(cut, tmp_path), cut)


def test_a_loose_model_can_lose_its_first_layer(tmp_path: Path) -> None:
    whole = language_model("t5")
    adapter(whole).loosen(whole)
    cut = copy.deepcopy(whole)
    keep_layers(cut, adapter(cut), [1, 2])
    with skipped([layer(whole, 0)]):
        assert close(cut, whole)
    assert torch.equal(logits(reopened(cut, tmp_path)), logits(cut))


def test_another_width_is_refused() -> None:
    model = language_model("t5")
    with pytest.raises(Rejected, match="root of its width"):
        keep_width(model, adapter(model), range(24), head_dim=8)
