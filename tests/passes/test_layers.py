"""Which layers go: influence at the layers themselves, the loss with everything told, and layers that are one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import SIZES, shaken
from unit_cases import again, decoder, outputs, rows_for, said, texts_for, tiny

from hasten.models import adapter_for
from hasten.passes.layers import LayersConfig, block_influence, drop_layers, greedy
from hasten.passes.units import batches_of
from hasten.records import Rejected
from hasten.tasks.wrappers import LogitsWrapper, NextTokenWrapper

FAMILIES = ("llama", "gpt2", "qwen2", "qwen2_moe", "gemma2", "phi3")


def silenced(family: str, number: int) -> NextTokenWrapper:
    """A decoder in which one layer adds nothing."""
    model = decoder(family)
    adapter = adapter_for(family)
    assert adapter is not None
    layer = adapter.layers(model.hf)[number]
    with torch.no_grad():
        for linear in (adapter.attention(layer).output, *(ffn.down for ffn in adapter.ffns(layer))):
            linear.weight.zero_()
            if linear.bias is not None:
                linear.bias.zero_()
    return model


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_that_adds_nothing_has_no_influence(family: str, number: int) -> None:
    """The last one too, whose output the model's own list of states shows behind the final norm."""
    model, given = silenced(family, number), texts_for()
    scores = block_influence(model, batches_of(given, rows=24))
    assert scores[number] == pytest.approx(0.0, abs=1e-5)
    assert min(score for i, score in enumerate(scores) if i != number) > 1e-3
    whole = said(model, given)
    made = drop_layers(model, LayersConfig(count=2, by="influence"), given)
    assert torch.allclose(said(made, given), whole, atol=1e-5)


def test_influence_is_one_minus_the_mean_cosine() -> None:
    model, given = decoder(), texts_for(count=5)
    sums = torch.zeros(2)
    tokens = 0
    with torch.inference_mode():
        for batch in given.head(5):
            states = model.hf.model(**batch, output_hidden_states=True).hidden_states
            for layer in (0, 1):  # behind the third stands the norm
                sums[layer] += torch.cosine_similarity(states[layer][0], states[layer + 1][0], dim=-1).sum()
            tokens += batch["input_ids"].shape[1]
    assert block_influence(model, batches_of(given, rows=5))[:2] == pytest.approx(
        (1 - sums / tokens).tolist(), abs=1e-5
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "gemma2", "qwen2_moe"])
def test_the_layer_without_which_nothing_changes_goes(family: str, tmp_path: Path) -> None:
    """Windows by layer and plain blocks among mixtures are told anew for every candidate, and told back."""
    model, given = silenced(family, 1), texts_for()
    whole = said(model, given)
    config = model.hf.config.to_dict()
    assert greedy(model, batches_of(given, rows=24), count=2) == [0, 2]
    assert torch.equal(said(model, given), whole)
    assert model.hf.config.to_dict() == config
    made = drop_layers(model, LayersConfig(count=2, by="loss"), given)
    assert torch.allclose(said(made, given), whole, atol=1e-5)
    assert torch.allclose(said(again(made, tmp_path), given), whole, atol=1e-5)


def test_encoders_are_scored_as_before() -> None:
    model, given = tiny(spread=4.0), rows_for(tiny())
    batches = batches_of(given, rows=24)
    with torch.inference_mode():
        states = [model.hf.base_model(**batch, output_hidden_states=True).hidden_states for batch in batches]
    masks = [batch["attention_mask"].bool() for batch in batches]
    for layer, score in enumerate(block_influence(model, batches)):
        pairs = [(s[layer][m], s[layer + 1][m]) for s, m in zip(states, masks, strict=True)]
        cosines = torch.cat([torch.cosine_similarity(a, b, dim=-1) for a, b in pairs])
        assert score == pytest.approx(1 - float(cosines.mean()), abs=1e-5)


def albert() -> Any:
    import transformers as t

    torch.manual_seed(0)
    config = t.AlbertConfig(
        vocab_size=66, max_position_embeddings=66, pad_token_id=1, embedding_size=16, num_labels=3, **SIZES
    )
    return LogitsWrapper(shaken(t.AutoModelForSequenceClassification.from_config(config))).eval()


def test_shared_layers_are_counted_by_their_turns() -> None:
    model = albert()
    given = rows_for(model)
    whole = outputs(model, given)
    made = drop_layers(model, LayersConfig(count=3), given)
    assert made.hf.config.num_hidden_layers == 3
    assert not torch.allclose(outputs(made, given), whole, atol=1e-4)
    with pytest.raises(Rejected, match="3 layers of 3 leave nothing"):
        drop_layers(made, LayersConfig(count=3), given)


@pytest.mark.parametrize(
    "config",
    [
        LayersConfig(count=2, by="loss"),
        LayersConfig(count=2, by="influence"),
        LayersConfig(count=2, keep=(1, 3)),
    ],
    ids=["loss", "influence", "named"],
)
def test_shared_layers_cannot_be_told_apart(config: LayersConfig) -> None:
    model = albert()
    with pytest.raises(Rejected, match="this albert share their weights, so none of them can be chosen"):
        drop_layers(model, config, rows_for(model))
