"""GPT-2: plain matrices in place of Conv1D, and heads out of one fused matrix."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from family_cases import adapter, close, layer, logits, mask_heads, mask_neurons, reopened, spoken, without_layers
from tiny_models import language_config, language_model, shaken
from torch import nn

from hasten.models.conv1d import plain_linears
from hasten.models.reshape import MARK, open_model
from hasten.models.surgery import keep_heads, keep_neurons, keep_width


def unprepared(**changes: Any) -> Any:
    from transformers import GPT2LMHeadModel

    torch.manual_seed(0)
    return shaken(GPT2LMHeadModel(language_config("gpt2", **changes)).eval())


def test_plain_linears_say_the_same() -> None:
    from transformers.pytorch_utils import Conv1D

    before = unprepared()
    after = copy.deepcopy(before)
    plain_linears(after)
    assert sum(isinstance(m, Conv1D) for m in before.modules()) == 12
    assert not any(isinstance(m, Conv1D) for m in after.modules())
    assert torch.allclose(logits(after), logits(before), atol=1e-6)
    assert spoken(after, cached=True) == spoken(before, cached=True)
    assert torch.equal(after.transformer.h[0].mlp.c_fc.weight, before.transformer.h[0].mlp.c_fc.weight.T)
    kept = after.transformer.h[0].attn.c_attn
    plain_linears(after)
    assert after.transformer.h[0].attn.c_attn is kept


def test_parts() -> None:
    model = language_model("gpt2")
    own = adapter(model)
    attention, ffn = own.attention(layer(model, 0)), own.ffn(layer(model, 0))
    assert attention.fused
    assert (attention.heads, attention.groups, attention.head_dim) == (4, 4, 8)
    assert [linear.weight.shape for linear in attention.inputs] == [(96, 32)]
    assert (ffn.neurons, ffn.gate, len(ffn.inputs)) == (48, None, 1)
    assert [type(norm) for norm in own.norms(layer(model, 0))] == [nn.LayerNorm] * 2
    assert own.norm_first
    assert sum(1 for m in own.embeddings(model).modules() if isinstance(m, nn.Embedding)) == 2


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_heads_and_neurons(implementation: str) -> None:
    masked = language_model("gpt2")
    masked.set_attn_implementation(implementation)
    cut, whole = copy.deepcopy(masked), copy.deepcopy(masked)
    own = adapter(cut)
    mask_heads(own.attention(layer(masked, 1)), [0, 3])
    mask_neurons(own.ffn(layer(masked, 2)), range(5))
    keep_heads(own.attention(layer(cut, 1)), [0, 3])
    keep_neurons(own.ffn(layer(cut, 2)), range(5))
    assert own.attention(layer(cut, 1)).query.out_features == 48
    assert close(cut, masked)
    assert not close(cut, whole)
    assert spoken(cut, cached=True) == spoken(cut, cached=False)


@pytest.mark.parametrize("by_number", [False, True])
def test_layers_that_move_keep_their_scores(by_number: bool, tmp_path: Path) -> None:
    without_layers(language_model("gpt2", scale_attn_by_inverse_layer_idx=by_number), [1, 2], tmp_path, marked=True)


def test_a_cut_model_survives_its_folder(tmp_path: Path) -> None:
    model = language_model("gpt2")
    keep_heads(adapter(model).attention(layer(model, 0)), [1, 2, 3])
    keep_heads(adapter(model).attention(layer(model, 2)), [2])
    keep_neurons(adapter(model).ffn(layer(model, 1)), range(9, 40))
    again = reopened(model, tmp_path)
    assert close(again, model)
    assert spoken(again, cached=True) == spoken(model, cached=True)


def test_plain_matrices_are_never_taken_for_conv1d(tmp_path: Path) -> None:
    """c_proj is square: read the other way round it would load, and say something else."""
    model = language_model("gpt2")
    assert close(reopened(model, tmp_path), model)
    own = unprepared()
    own.save_pretrained(tmp_path / "theirs")
    opened = open_model(type(own), tmp_path / "theirs", attention="sdpa", dtype=torch.float32)
    assert not hasattr(opened.config, MARK)
    assert isinstance(opened.transformer.h[0].attn.c_proj, nn.Linear)
    assert close(opened, own)


def test_narrower(tmp_path: Path) -> None:
    model = language_model("gpt2")
    keep_width(model, adapter(model), range(24), head_dim=8)
    assert (model.config.hidden_size, model.config.num_attention_heads) == (24, 3)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert torch.isfinite(logits(model)).all()
    assert close(reopened(model, tmp_path), model)
