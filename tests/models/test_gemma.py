"""Gemma 2 and 3: four norms a layer, windows by layer, and a language model beside an image encoder."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from family_cases import adapter, close, layer, mask_heads, mask_neurons, reopened, skipped, spoken, without_layers
from tiny_models import language_config, language_model, shaken

from hasten.models import adapter_for
from hasten.models.surgery import keep_heads, keep_layers, keep_neurons, keep_width
from hasten.records import Rejected

FAMILIES = ("gemma2", "gemma3_text")


@pytest.mark.parametrize("family", FAMILIES)
def test_parts(family: str) -> None:
    model = language_model(family)
    own = adapter(model)
    attention, ffn = own.attention(layer(model, 0)), own.ffn(layer(model, 0))
    assert (attention.heads, attention.groups, attention.head_dim) == (4, 2, 8)
    assert (ffn.neurons, len(ffn.inputs)) == (48, 2)
    assert len(own.norms(layer(model, 0))) == 4
    assert own.norm_first
    assert own.sandwiched
    assert own.embeddings(model).weight.shape == (66, 32)
    assert model.lm_head.weight is own.embeddings(model).weight


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_and_neurons(family: str) -> None:
    masked = language_model(family)
    cut, whole = copy.deepcopy(masked), copy.deepcopy(masked)
    own = adapter(cut)
    mask_heads(own.attention(layer(masked, 0)), [1])
    mask_neurons(own.ffn(layer(masked, 1)), range(11))
    keep_heads(own.attention(layer(cut, 0)), [1])
    keep_neurons(own.ffn(layer(cut, 1)), range(11))
    assert close(cut, masked)
    assert not close(cut, whole)


@pytest.mark.parametrize("keep", [[0, 2], [1, 2], [1]])
@pytest.mark.parametrize("family", FAMILIES)
def test_dropped_layers_keep_their_windows(family: str, keep: list[int], tmp_path: Path) -> None:
    whole = language_model(family)
    cut = without_layers(whole, keep, tmp_path)
    assert cut.config.layer_types == [whole.config.layer_types[number] for number in keep]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_model_survives_its_folder(family: str, tmp_path: Path) -> None:
    model = language_model(family)
    keep_layers(model, adapter(model), [0, 1])
    keep_heads(adapter(model).attention(layer(model, 1)), [0])
    keep_neurons(adapter(model).ffn(layer(model, 0)), range(30))
    again = reopened(model, tmp_path)
    assert close(again, model)
    assert spoken(again, cached=True) == spoken(model, cached=True)


def test_another_width_is_refused() -> None:
    model = language_model("gemma2")
    with pytest.raises(Rejected, match="root of its width"):
        keep_width(model, adapter(model), range(24), head_dim=8)


def with_images() -> Any:
    import transformers as t

    torch.manual_seed(0)
    vision = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    vision |= {"image_size": 28, "patch_size": 14}
    config = t.Gemma3Config(
        text_config=language_config("gemma3_text").to_dict(), vision_config=vision, mm_tokens_per_image=4,
        image_token_index=60, boi_token_index=61, eoi_token_index=62, pad_token_id=1,
    )  # fmt: skip
    return shaken(t.Gemma3ForConditionalGeneration(config).eval())


def test_beside_an_image_encoder_only_the_language_model_changes() -> None:
    whole = with_images()
    own = adapter_for("gemma3")
    assert own is not None
    cut = copy.deepcopy(whole)
    assert len(own.layers(cut)) == 3
    keep_layers(cut, own, [1, 2])
    assert (cut.config.text_config.num_hidden_layers, cut.config.vision_config.num_hidden_layers) == (2, 2)
    assert cut.config.text_config.layer_types == ["full_attention", "sliding_attention"]
    with skipped([own.layers(whole)[0]]):
        assert close(cut, whole)
