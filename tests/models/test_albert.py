"""ALBERT: what is done to its one layer is done everywhere, and it can run fewer times."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from family_cases import IDS, REAL, adapter, layer, mask_heads, mask_neurons
from tiny_models import SIZES, shaken

from hasten.models.reshape import MARK, open_model, save_model
from hasten.models.surgery import keep_heads, keep_layers, keep_neurons, keep_width, shortened
from hasten.records import Rejected


def albert(**changes: Any) -> Any:
    import transformers as t

    torch.manual_seed(0)
    settings = {"vocab_size": 66, "max_position_embeddings": 66, "pad_token_id": 1, "embedding_size": 16, **SIZES}
    config = t.AlbertConfig(**{**settings, "num_labels": 3, **changes})
    return shaken(t.AlbertForSequenceClassification(config).eval())


@torch.inference_mode()
def states(model: Any) -> torch.Tensor:
    return model.albert(input_ids=IDS, attention_mask=REAL.long()).last_hidden_state[REAL]  # type: ignore[no-any-return]


def close(first: Any, second: Any) -> bool:
    return torch.allclose(states(first), states(second), atol=2e-5)


def test_parts() -> None:
    model = albert()
    own = adapter(model)
    (stack,) = own.stacks(model)
    assert (len(stack.layers), stack.depth, stack.shared) == (1, 4, True)
    attention, ffn = own.attention(layer(model, 0)), own.ffn(layer(model, 0))
    assert (attention.heads, attention.groups, attention.head_dim) == (4, 4, 8)
    assert (ffn.neurons, ffn.up.in_features) == (64, 32)
    assert [norm.weight.shape[0] for norm in own.norms(layer(model, 0))] == [32, 32]
    assert not own.norm_first
    assert own.embeddings(model).word_embeddings.weight.shape == (66, 16)


def test_all_copies_lose_the_same(tmp_path: Path) -> None:
    masked = albert()
    cut, whole = copy.deepcopy(masked), copy.deepcopy(masked)
    own = adapter(cut)
    mask_heads(own.attention(layer(masked, 0)), [1, 2])
    mask_neurons(own.ffn(layer(masked, 0)), range(5, 40))
    keep_heads(own.attention(layer(cut, 0)), [1, 2])
    keep_neurons(own.ffn(layer(cut, 0)), range(5, 40))
    assert close(cut, masked)
    assert not close(cut, whole)
    save_model(cut, tmp_path)
    again = open_model(type(cut), tmp_path, attention="sdpa", dtype=torch.float32)
    assert getattr(again.config, MARK)
    assert close(again, cut)


@pytest.mark.parametrize("keep", [[0], [1, 3], [0, 1, 2]])
def test_a_dropped_layer_is_a_turn_less(keep: list[int], tmp_path: Path) -> None:
    whole = albert()
    cut = copy.deepcopy(whole)
    keep_layers(cut, adapter(cut), keep)
    assert cut.config.num_hidden_layers == len(keep)
    assert adapter(cut).stacks(cut)[0].depth == len(keep)
    with torch.inference_mode():
        given = {"input_ids": IDS, "attention_mask": REAL.long()}
        found = whole.albert(**given, output_hidden_states=True).hidden_states[len(keep)]
    assert torch.allclose(states(cut), found[REAL], atol=1e-6)
    save_model(cut, tmp_path)
    assert not hasattr(cut.config, MARK)
    assert close(open_model(type(cut), tmp_path, attention="sdpa", dtype=torch.float32), cut)


def test_a_shorter_one() -> None:
    model = albert()
    assert shortened(model, adapter(model), layers=2).config.num_hidden_layers == 2
    assert shortened(model, adapter(model), layers=7).config.num_hidden_layers == model.config.num_hidden_layers == 4


def test_several_groups_keep_their_depth() -> None:
    model = albert(num_hidden_groups=2)
    own = adapter(model)
    assert len(own.layers(model)) == 2
    with pytest.raises(Rejected, match="run in turn"):
        keep_layers(model, own, [0, 1])
    masked = copy.deepcopy(model)
    mask_heads(own.attention(own.layers(masked)[1]), [0])
    keep_heads(own.attention(own.layers(model)[1]), [0])
    assert close(model, masked)


def test_narrower(tmp_path: Path) -> None:
    model = albert()
    keep_width(model, adapter(model), range(24), head_dim=8)
    assert torch.isfinite(states(model)).all()
    save_model(model, tmp_path)
    assert close(open_model(type(model), tmp_path, attention="sdpa", dtype=torch.float32), model)
