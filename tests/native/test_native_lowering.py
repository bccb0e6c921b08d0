"""Encoders as flat programs, computed with numpy: the same function as eager, in every family, head and shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from encoder_cases import FAMILIES, HEADS, Array, adapter_to, batch_of, eager, ragged, wrapped
from native_reference import expected
from torch import nn

from hasten.models.precision import keep_fp32
from hasten.models.prefix import attach_prefixes
from hasten.models.surgery import LowRankLinear, keep_heads, keep_layers, keep_neurons, replace_module
from hasten.native.program import Attention
from hasten.native.program import Linear as Product
from hasten.native.tensors import Bf16, Floats, Int4, Int8
from hasten.passes.fake_quant import fake_quantized
from hasten.passes.matrices import encoder_matrices
from hasten.records import Rejected
from hasten.runtimes.native_encoders import Lowered, lowered
from hasten.tasks.wrappers import LogitsWrapper, NextTokenWrapper, Wrapper


def made(wrapper: Wrapper, precision: Any = "fp32", **settings: Any) -> Lowered:
    return lowered(wrapper, **{"precision": precision, "group": 32, "embeddings": False, **settings})


def plain(wrapper: Wrapper, batch: dict[str, Any], precision: Any = "fp32", **settings: Any) -> Array:
    ids, lengths, types = ragged(batch)
    return expected(made(wrapper, precision, **settings).program, ids, lengths=lengths, types=types)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_head(family: str, head: str) -> None:
    wrapper, batch = wrapped(family, head), batch_of(family)
    found = plain(wrapper, batch)
    assert made(wrapper).per_token == (head in ("tags", "span"))
    assert found.shape == eager(wrapper, batch).shape
    assert np.allclose(found, eager(wrapper, batch), atol=2e-5)


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_pytorch_tanh", "gelu_fast", "relu", "silu"])
def test_activations(activation: str) -> None:
    wrapper, batch = wrapped("bert", hidden_act=activation), batch_of("bert")
    assert np.allclose(plain(wrapper, batch), eager(wrapper, batch), atol=2e-5)
    distil = wrapped("distilbert", activation="relu")
    assert np.allclose(plain(distil, batch_of("distilbert")), eager(distil, batch_of("distilbert")), atol=2e-5)


@pytest.mark.parametrize("family", ["bert", "distilbert", "electra"])
def test_layers_that_were_cut_unequally(family: str) -> None:
    wrapper, batch = wrapped(family), batch_of(family)
    cut(wrapper)
    assert np.allclose(plain(wrapper, batch), eager(wrapper, batch), atol=2e-5)
    ops = made(wrapper).program.ops
    assert [op.heads for op in ops if isinstance(op, Attention)] == [3, 1, 4]


def cut(wrapper: Wrapper) -> None:
    """Three of four layers, of 3, 1 and 4 heads and 24, 64 and 40 neurons."""
    adapter = adapter_to(wrapper)
    keep_layers(wrapper.hf, adapter, [0, 1, 3])
    for layer, (heads, neurons) in zip(
        adapter.layers(wrapper.hf), [([0, 2, 3], 24), ([1], 64), (range(4), 40)], strict=True
    ):
        keep_heads(adapter.attention(layer), list(heads))
        keep_neurons(adapter.ffn(layer), list(range(neurons)))


def test_a_layer_without_heads_and_neurons_is_its_biases() -> None:
    """Eager PyTorch cannot run one, so it is held against heads and neurons that nobody hears."""
    wrapper, batch = wrapped("bert"), batch_of("bert")
    adapter = adapter_to(wrapper)
    layer: Any = adapter.layers(wrapper.hf)[1]
    attention, ffn = adapter.attention(layer), adapter.ffn(layer)
    with torch.no_grad():
        attention.output.weight.zero_()
        ffn.down.weight.zero_()
    wanted = eager(wrapper, batch)
    keep_heads(adapter.attention(layer), [])
    keep_neurons(adapter.ffn(layer), [])
    assert np.allclose(plain(wrapper, batch), wanted, atol=2e-5)
    assert np.allclose(plain(wrapper, batch, "int8-dynamic"), wanted, atol=0.05)
    assert sum(isinstance(op, Attention) for op in made(wrapper).program.ops) == 3


@pytest.mark.parametrize("which", ["ffn", "attention"])
def test_factors_are_two_products_or_multiplied_out(which: str) -> None:
    wrapper, batch = wrapped("bert"), batch_of("bert")
    for layer in adapter_to(wrapper).layers(wrapper.hf):
        for name, module in list(layer.named_modules()):
            wide = ("intermediate" in name or name == "output.dense") == (which == "ffn")
            if isinstance(module, nn.Linear) and wide:
                replace_module(layer, name, factors(module))
    assert np.allclose(plain(wrapper, batch), eager(wrapper, batch), atol=2e-5)
    products = [op for op in made(wrapper).program.ops if isinstance(op, Product)]
    assert len(products) == 2 + 4 * (6 if which == "ffn" else 5)


def factors(linear: nn.Linear) -> LowRankLinear:
    thin = LowRankLinear(linear.in_features, linear.out_features, rank=7, bias=linear.bias is not None)
    with torch.no_grad():
        for part in (thin.first, thin.second):
            part.weight.normal_(std=0.2)
        thin.second.bias.copy_(linear.bias)
    return thin


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra"])
def test_int8_is_what_training_on_the_grid_sees(family: str) -> None:
    """Weights by row, activations by token; where a number lies between two steps they may differ by one."""
    wrapper, batch = wrapped(family), batch_of(family)
    matrices = [matrix.linear for matrix in encoder_matrices(wrapper, what="a test")]
    with fake_quantized(matrices, bits=8, per="token"):
        wanted = eager(wrapper, batch)
    found = plain(wrapper, batch, "int8-dynamic")
    far = np.abs(wanted - eager(wrapper, batch)).max()
    assert np.abs(found - wanted).max() < 0.3 * far
    assert np.abs(found - eager(wrapper, batch)).max() < 2 * far


def test_heads_and_what_a_pass_names_stay_fp32() -> None:
    wrapper = wrapped("bert")
    keep_fp32(wrapper.hf, ["bert.encoder.layer.2.output.dense", "bert.encoder.layer.1.attention.self.key"])
    lower = made(wrapper, "int8-dynamic")
    forms = [type(lower.program.tensors[op.weight]) for op in lower.program.ops if isinstance(op, Product)]
    assert forms == [Int8] * 4 + [Floats, *[Int8] * 3] + [Int8] * 3 + [Floats] + [Int8] * 4 + [Floats] * 2
    assert lower.notes == ("matrices of the layers: 4 in fp32, 20 in int8",)
    batch = batch_of("bert")
    off = np.abs(plain(wrapper, batch, "int8-dynamic") - eager(wrapper, batch)).max()
    assert 0 < off < 0.1


@pytest.mark.parametrize(("precision", "form"), [("bf16", Bf16), ("int4", Int4), ("int8-dynamic", Int8)])
def test_precisions(precision: str, form: type) -> None:
    lower = made(wrapped("roberta"), precision)
    forms = [type(lower.program.tensors[op.weight]) for op in lower.program.ops if isinstance(op, Product)]
    assert forms == [form] * 16 + [Floats] * 2


def test_shared_layers_are_stored_once() -> None:
    program = made(wrapped("albert")).program
    products = [op for op in program.ops if isinstance(op, Product)]
    assert len(products) == 1 + 3 * 4 + 2
    assert len({op.weight for op in products}) == 1 + 4 + 2


def test_what_has_no_place_is_refused_with_the_reason() -> None:
    with pytest.raises(Rejected, match="activation 'mish'"):
        made(wrapped("bert", hidden_act="mish"))
    prefixed = wrapped("bert")
    layers: Any = adapter_to(prefixed).layers(prefixed.hf)
    attach_prefixes(prefixed.hf, [layer.attention.self for layer in layers], [torch.zeros(2, 4, 3, 8)] * len(layers))
    with pytest.raises(Rejected, match="learnt prefixes"):
        made(prefixed)
    with pytest.raises(Rejected, match="no head for NextTokenWrapper"):
        made(NextTokenWrapper(wrapped("bert").hf))
    other = wrapped("bert")
    other.hf.config.model_type = "gpt2"
    with pytest.raises(Rejected, match="this is a gpt2 model"):
        made(other)
    strange = wrapped("bert")
    replace_module(strange.hf, "bert.encoder.layer.0.output.dense", nn.Identity())
    with pytest.raises(Rejected, match="Identity"):
        made(strange)
    forgetful = wrapped("bert")
    keep_fp32(forgetful.hf, ["bert.encoder.layer.7.output.dense"])
    with pytest.raises(Rejected, match="is to stay in fp32"):
        made(forgetful, "int8-dynamic")
    headless = LogitsWrapper(wrapped("bert").hf.bert)
    with pytest.raises(Rejected, match="no matrix"):
        made(headless)
