"""MobileBERT: several feed-forward blocks between bottlenecks; what cannot be done cleanly is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from family_cases import IDS, REAL, adapter, layer, mask_heads, mask_neurons, skipped
from tiny_models import SIZES, shaken

from hasten.models.reshape import MARK, open_model, save_model
from hasten.models.surgery import keep_heads, keep_layers, keep_neurons, keep_width
from hasten.records import Rejected


def mobilebert(**changes: Any) -> Any:
    import transformers as t

    torch.manual_seed(0)
    settings = {"vocab_size": 66, "max_position_embeddings": 66, "pad_token_id": 1, "embedding_size": 16, **SIZES}
    settings |= {"intra_bottleneck_size": 16, "num_feedforward_networks": 3, "num_labels": 3}
    return shaken(t.MobileBertForSequenceClassification(t.MobileBertConfig(**{**settings, **changes})).eval())


@torch.inference_mode()
def states(model: Any) -> torch.Tensor:
    given = {"input_ids": IDS, "attention_mask": REAL.long()}
    return model.mobilebert(**given).last_hidden_state[REAL]  # type: ignore[no-any-return]


def close(first: Any, second: Any) -> bool:
    return torch.allclose(states(first), states(second), atol=2e-5)


def test_parts() -> None:
    model = mobilebert()
    own = adapter(model)
    attention = own.attention(layer(model, 0))
    assert (attention.heads, attention.groups, attention.head_dim) == (4, 4, 4)
    assert (attention.query.in_features, attention.value.in_features, attention.output.out_features) == (16, 32, 16)
    assert attention.reads == ("shared", "shared", "hidden")
    assert [ffn.neurons for ffn in own.ffns(layer(model, 0))] == [64, 64, 64]
    assert [type(norm).__name__ for norm in own.norms(layer(model, 0))] == ["NoNorm"] * 4
    assert len(own.layers(model)) == 4


@pytest.mark.parametrize(
    ("changes", "reads"),
    [
        ({"use_bottleneck_attention": True}, ("hidden", "hidden", "hidden")),
        ({"use_bottleneck": False, "num_feedforward_networks": 1}, ("hidden", "hidden", "hidden")),
        ({"normalization_type": "layer_norm"}, ("shared", "shared", "hidden")),
    ],
)
def test_other_bottlenecks(changes: dict[str, Any], reads: tuple[str, str, str]) -> None:
    model = mobilebert(**changes)
    own = adapter(model)
    assert own.attention(layer(model, 0)).reads == reads
    assert len(own.norms(layer(model, 0))) == len(own.ffns(layer(model, 0))) + 1
    if len(own.ffns(layer(model, 0))) == 1:
        assert own.ffn(layer(model, 0)).neurons == 64


def test_heads_neurons_of_every_block_and_layers(tmp_path: Path) -> None:
    masked = mobilebert()
    cut, whole = copy.deepcopy(masked), copy.deepcopy(masked)
    own = adapter(cut)
    mask_heads(own.attention(layer(masked, 1)), [0, 2])
    keep_heads(own.attention(layer(cut, 1)), [0, 2])
    for number, ffn in enumerate(own.ffns(layer(masked, 3))):
        mask_neurons(ffn, range(10 + number))
        keep_neurons(own.ffns(layer(cut, 3))[number], range(10 + number))
    assert close(cut, masked)
    assert not close(cut, whole)
    keep_layers(cut, own, [1, 3])
    with skipped([layer(masked, 0), layer(masked, 2)]):
        assert close(cut, masked)
    save_model(cut, tmp_path)
    again = open_model(type(cut), tmp_path, attention="sdpa", dtype=torch.float32)
    assert getattr(again.config, MARK)
    assert close(again, cut)


def test_what_needs_one_block_or_another_width_is_refused() -> None:
    model = mobilebert()
    with pytest.raises(Rejected, match="3 feed-forward blocks"):
        adapter(model).ffn(layer(model, 0))
    with pytest.raises(Rejected, match="one width inside"):
        keep_width(model, adapter(model), range(24), head_dim=4)
