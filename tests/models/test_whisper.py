"""Whisper: two stacks of pre-norm layers behind convolutions, which lose layers, heads and neurons like others."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from family_cases import SOUNDS, adapter, close, layer, mask_heads, mask_neurons, reopened, spoken, without_layers
from tiny_models import BANDS, FRAMES, whisper
from torch import nn

from hasten.models.load import load_checkpoint
from hasten.models.surgery import LowRankLinear, keep_heads, keep_layers, keep_neurons, keep_width, replace_module
from hasten.pipeline.jobs import describe
from hasten.pipeline.prepare import unadapted
from hasten.records import ModelRef, Rejected
from hasten.tasks import get_task


def test_parts() -> None:
    model = whisper()
    own = adapter(model)
    assert own.family == "whisper"
    assert own.norm_first
    stacks = own.stacks(model)
    assert [(stack.name, len(stack.layers)) for stack in stacks] == [("encoder", 2), ("decoder", 3)]
    first, last = stacks[0].layers[0], stacks[1].layers[2]
    crossing = own.cross_attention(last)
    assert own.cross_attention(first) is None
    assert crossing is not None
    for parts, heads in ((own.attention(first), 4), (own.attention(last), 2), (crossing, 2)):
        assert (parts.heads, parts.groups, parts.head_dim) == (heads, heads, 32 // heads)
        assert parts.cross is (parts is crossing)
        assert (parts.key.bias is None, parts.query.bias is None) == (True, False)
    assert own.ffn(first).neurons == own.ffn(last).neurons == 48
    assert [len(own.norms(each)) for each in (first, last)] == [2, 3]
    front = list(own.embeddings(model).modules())
    assert sum(isinstance(m, nn.Conv1d) for m in front) == 2
    assert sum(isinstance(m, nn.Embedding) for m in front) == 3


def test_norms_run_in_their_order() -> None:
    model = whisper()
    own, ran = adapter(model), list[nn.Module]()
    last = layer(model, 2, stack="decoder")
    for norm in own.norms(last):
        norm.register_forward_pre_hook(lambda module, _inputs: ran.append(module))
    with torch.inference_mode():
        states = model.get_encoder()(SOUNDS).last_hidden_state
        model(encoder_outputs=(states,), decoder_input_ids=torch.tensor([[4], [4]]))
    assert tuple(ran) == own.norms(last)
    assert own.tokens(model, {"input_features": SOUNDS}) == states.shape[1] == FRAMES // 2


@pytest.mark.parametrize(("stack", "keep"), [("encoder", [1]), ("decoder", [0, 2])])
def test_layers_of_either_stack(stack: str, keep: list[int], tmp_path: Path) -> None:
    cut = without_layers(whisper(), keep, tmp_path, stack=stack)
    assert (cut.config.encoder_layers, cut.config.decoder_layers) == ((1, 3) if stack == "encoder" else (2, 2))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_heads_and_neurons_of_both_stacks(implementation: str, tmp_path: Path) -> None:
    masked = whisper()
    masked.set_attn_implementation(implementation)
    cut, whole = copy.deepcopy(masked), copy.deepcopy(masked)
    own = adapter(cut)
    for model, heads, neurons in ((masked, mask_heads, mask_neurons), (cut, keep_heads, keep_neurons)):
        crossing = own.cross_attention(layer(model, 0, stack="decoder"))
        assert crossing is not None
        heads(crossing, [1])
        heads(own.attention(layer(model, 1)), [0, 1, 3])
        heads(own.attention(layer(model, 2, stack="decoder")), [0])
        neurons(own.ffn(layer(model, 0)), range(9))
        neurons(own.ffn(layer(model, 1, stack="decoder")), range(5, 48))
    assert close(cut, masked)
    assert not close(cut, whole)
    assert spoken(cut, cached=True) == spoken(cut, cached=False)
    assert close(reopened(cut, tmp_path), cut)


def test_a_thin_matrix_beside_cut_heads(tmp_path: Path) -> None:
    model = whisper()
    own = adapter(model)
    keep_heads(own.attention(layer(model, 0)), [0, 2])
    name = "model.encoder.layers.0.self_attn.q_proj"
    replace_module(model, name, LowRankLinear(32, 16, rank=3))
    assert own.attention(layer(model, 0)).heads == 2
    assert close(reopened(model, tmp_path), model)


def test_heads_that_told_times_are_forgotten_with_their_layers() -> None:
    """Their numbers would mean other layers."""
    model = whisper()
    model.generation_config.alignment_heads = [[1, 0], [2, 1]]
    keep_layers(model, adapter(model), [1], stack="encoder")
    assert model.generation_config.alignment_heads == [[1, 0], [2, 1]]
    keep_layers(model, adapter(model), [0, 1], stack="decoder")
    assert not hasattr(model.generation_config, "alignment_heads")


def test_another_width_is_refused() -> None:
    model = whisper()
    with pytest.raises(Rejected, match="convolutions"):
        keep_width(model, adapter(model), range(24), head_dim=8)


def test_a_checkpoint_is_known_by_its_parts(tmp_path: Path) -> None:
    """The verdict has nothing to warn of: what is offered to other families is offered here."""
    from tiny_models import save_tokenizer
    from transformers import WhisperFeatureExtractor

    whisper().save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    WhisperFeatureExtractor(feature_size=BANDS, chunk_length=1).save_pretrained(tmp_path)
    facts = describe(load_checkpoint(ModelRef(str(tmp_path)), task=get_task("speech-recognition")))
    assert (facts.family, facts.layers, facts.heads, facts.neurons) == ("whisper", 2, 8, 96)
    assert unadapted(facts) == ()
