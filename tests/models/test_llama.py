"""Llama, Mistral, Qwen 2 and 3, and Phi-3 with its fused matrices."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from family_cases import adapter, close, layer, logits, mask_heads, mask_neurons, reopened, spoken, without_layers
from tiny_models import language_model

from hasten.models.llama import OwnHeads
from hasten.models.surgery import keep_heads, keep_layers, keep_neurons, keep_width, shortened
from hasten.records import Rejected

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3")


@pytest.mark.parametrize("family", FAMILIES)
def test_parts(family: str) -> None:
    model = language_model(family)
    own = adapter(model)
    assert own.family == family
    (stack,) = own.stacks(model)
    assert (len(stack.layers), stack.depth, stack.shared) == (3, 3, False)
    attention, ffn = own.attention(stack.layers[0]), own.ffn(stack.layers[0])
    assert (attention.heads, attention.groups, attention.head_dim, attention.group_dim) == (4, 2, 8, 16)
    assert (attention.output.in_features, ffn.neurons) == (32, 48)
    fused = family == "phi3"
    assert attention.fused is ffn.fused is fused
    assert [linear.out_features for linear in attention.inputs] == ([64] if fused else [32, 16, 16])
    assert [linear.out_features for linear in ffn.inputs] == ([96] if fused else [48, 48])
    assert own.norm_first
    assert not own.sandwiched
    assert [tuple(norm.weight.shape) for norm in own.norms(stack.layers[0])] == [(32,), (32,)]
    assert own.embeddings(model).weight.shape == (66, 32)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_key_goes_with_all_its_queries(family: str, attention: str) -> None:
    masked = language_model(family)
    masked.set_attn_implementation(attention)
    cut, whole = copy.deepcopy(masked), copy.deepcopy(masked)
    mask_heads(adapter(masked).attention(layer(masked, 1)), [1])
    keep_heads(adapter(cut).attention(layer(cut, 1)), [1])
    parts = adapter(cut).attention(layer(cut, 1))
    assert (parts.heads, parts.groups, parts.output.in_features) == (2, 1, 16)
    assert close(cut, masked)
    assert not close(cut, whole)
    assert spoken(cut, cached=True) == spoken(cut, cached=False) == spoken(masked, cached=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_neuron_goes_with_its_gate(family: str) -> None:
    masked = language_model(family)
    cut, whole = copy.deepcopy(masked), copy.deepcopy(masked)
    mask_neurons(adapter(masked).ffn(layer(masked, 2)), range(7, 20))
    keep_neurons(adapter(cut).ffn(layer(cut, 2)), range(7, 20))
    assert adapter(cut).ffn(layer(cut, 2)).neurons == 13
    assert close(cut, masked)
    assert not close(cut, whole)


@pytest.mark.parametrize("keep", [[0, 2], [1, 2], [1]])
@pytest.mark.parametrize("family", FAMILIES)
def test_dropped_layers(family: str, keep: list[int], tmp_path: Path) -> None:
    cut = without_layers(language_model(family), keep, tmp_path)
    assert cut.config.num_hidden_layers == len(keep)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_model_survives_its_folder(family: str, tmp_path: Path) -> None:
    model = language_model(family)
    keep_layers(model, adapter(model), [0, 2])
    keep_heads(adapter(model).attention(layer(model, 1)), [0])
    keep_neurons(adapter(model).ffn(layer(model, 0)), range(30))
    again = reopened(model, tmp_path)
    assert close(again, model)
    assert spoken(again, cached=True) == spoken(model, cached=False)
    again.set_attn_implementation("eager")
    assert close(again, model)


def test_the_windows_follow_the_layers(tmp_path: Path) -> None:
    model = language_model("qwen2")
    assert model.config.layer_types == ["sliding_attention", "full_attention", "sliding_attention"]
    keep_layers(model, adapter(model), [1, 2])
    assert model.config.layer_types == ["full_attention", "sliding_attention"]
    assert reopened(model, tmp_path, marked=False).config.layer_types == model.config.layer_types


def test_a_config_with_its_own_heads_follows_the_shared_one() -> None:
    model = language_model("phi3")
    keep_heads(adapter(model).attention(layer(model, 0)), [1])
    twin = copy.deepcopy(model)
    twin.set_attn_implementation("eager")
    own = layer(twin, 0).self_attn.config  # type: ignore[union-attr]
    assert isinstance(own, OwnHeads)
    assert own.shared is twin.config
    assert (own.num_attention_heads, twin.config.num_attention_heads) == (2, 4)
    assert own._attn_implementation == "eager"
    assert layer(model, 0).self_attn.config._attn_implementation == "sdpa"  # type: ignore[union-attr]
    assert not isinstance(layer(twin, 1).self_attn.config, OwnHeads)  # type: ignore[union-attr]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_narrower_model_computes_what_zeros_would(family: str, tmp_path: Path) -> None:
    """Coordinates that nothing writes are zero, and can go."""
    model = language_model(family, tie_word_embeddings=True)
    own = adapter(model)
    gone = list(range(3, 11))
    with torch.no_grad():
        own.embeddings(model).weight[:, gone] = 0.0
        for each in own.layers(model):
            for linear in (own.attention(each).output, own.ffn(each).down):
                linear.weight[gone] = 0.0
                if linear.bias is not None:
                    linear.bias[gone] = 0.0
    narrow = copy.deepcopy(model)
    keep_width(narrow, own, [i for i in range(32) if i not in gone], head_dim=8)
    assert narrow.config.hidden_size == 24
    assert torch.allclose(logits(narrow), logits(model), atol=1e-3)  # the norms' epsilon counts more
    assert narrow.lm_head.weight is own.embeddings(narrow).weight
    assert close(reopened(narrow, tmp_path, marked=False), narrow)


def test_a_width_that_the_heads_do_not_divide_is_refused() -> None:
    model = language_model("llama")
    with pytest.raises(Rejected, match="no multiple of the 4 heads"):
        keep_width(model, adapter(model), range(30), head_dim=8)


def test_a_shorter_model_leaves_the_whole_one_alone() -> None:
    model = language_model("qwen3")
    short = shortened(model, adapter(model), layers=1)
    assert (short.config.num_hidden_layers, model.config.num_hidden_layers) == (1, 3)
    assert shortened(model, adapter(model), layers=9).config.num_hidden_layers == 3
