"""What passes over matrices and units see of families that are not built like BERT."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny_models import language_config, language_model, shaken, whisper
from unit_cases import outputs, rows_for

from hasten.models import adapter_for
from hasten.models.reshape import prepared
from hasten.models.surgery import LowRankLinear, replace_module
from hasten.passes.family import called_alike
from hasten.passes.magnitude import head_norms, neuron_norms
from hasten.passes.matrices import by_source, encoder_matrices
from hasten.passes.smooth_quant import SmoothQuantConfig, smooth
from hasten.tasks.wrappers import LogitsWrapper


def seen(family: str, *, layer: int = 0) -> dict[str, tuple[str, str]]:
    """Last parts of the names -> part and source, of one layer."""
    found = encoder_matrices(SimpleNamespace(hf=language_model(family)), what="a test")
    return {".".join(m.name.split(".")[3:]): (m.part, m.source) for m in found if m.layer == layer}


def test_a_gate_is_a_matrix_and_reads_what_up_reads() -> None:
    assert seen("llama") == {
        "self_attn.q_proj": ("attention", "hidden"), "self_attn.k_proj": ("attention", "hidden"),
        "self_attn.v_proj": ("attention", "hidden"), "self_attn.o_proj": ("attention", "context"),
        "mlp.gate_proj": ("up", "mixed"), "mlp.up_proj": ("up", "mixed"), "mlp.down_proj": ("down", "inner"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("phi3", ["self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"]),
        ("gpt2", ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]),
    ],
)
def test_a_fused_matrix_is_one(family: str, names: list[str]) -> None:
    assert list(seen(family)) == names
    assert [source for _, source in seen(family).values()] == ["hidden", "context", "mixed", "inner"]


def test_every_expert_reads_tokens_of_its_own() -> None:
    model = SimpleNamespace(hf=language_model("qwen2_moe"))
    own = [m for m in encoder_matrices(model, what="a test") if m.layer == 0]
    assert len(own) == 4 + 3 * 5
    assert not any(m.name.endswith(("mlp.gate", "shared_expert_gate")) for m in own)
    assert sorted(map(len, by_source(own))) == [1] * 6 + [2] * 5 + [3]


@pytest.mark.parametrize(("family", "layers"), [("t5", (3, 2)), ("bart", (3, 2)), ("whisper", (2, 3))])
def test_a_decoder_follows_its_encoder(family: str, layers: tuple[int, int]) -> None:
    model = whisper() if family == "whisper" else language_model(family)
    found = encoder_matrices(SimpleNamespace(hf=model), what="a test")
    assert [max(m.layer for m in found), len(found)] == [4, layers[0] * 6 + layers[1] * 10]
    groups = by_source([m for m in found if m.layer == 3])
    assert [len(group) for group in groups] == [3, 1, 1, 2, 1, 1, 1]
    assert {m.source for m in groups[3]} == {"memory"}


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
def test_sizes_of_groups_and_neurons(family: str) -> None:
    """Against the sums that surgery would take away."""
    model = language_model(family)
    adapter = adapter_for(family)
    assert adapter is not None
    parts, ffn = adapter.attention(adapter.layers(model)[0]), adapter.ffn(adapter.layers(model)[0])
    heads, neurons = head_norms(parts), neuron_norms(ffn)
    assert heads.shape == (parts.groups,)
    assert neurons.shape == (ffn.neurons,)
    matrices = [linear.weight.detach() for linear in (*parts.inputs, parts.output)]
    assert float(heads.square().sum()) == pytest.approx(float(sum(w.square().sum() for w in matrices)), rel=1e-5)
    matrices = [linear.weight.detach() for linear in (*ffn.inputs, ffn.down)]
    assert float(neurons.square().sum()) == pytest.approx(float(sum(w.square().sum() for w in matrices)), rel=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "phi3", "llama"])
def test_thin_factors_of_a_fused_matrix(family: str) -> None:
    model = language_model(family)
    adapter = adapter_for(family)
    assert adapter is not None
    parts = adapter.attention(adapter.layers(model)[1])
    name = next(name for name, module in model.named_modules() if module is parts.query)
    old = parts.query
    thin = LowRankLinear(old.in_features, old.out_features, rank=4, bias=old.bias is not None)
    replace_module(model, name, thin)
    again = adapter.attention(adapter.layers(model)[1])
    assert (again.heads, again.groups, again.head_dim) == (parts.heads, parts.groups, parts.head_dim)
    assert {m.name for m in encoder_matrices(SimpleNamespace(hf=model), what="a test")} >= {
        f"{name}.first", f"{name}.second",
    }  # fmt: skip
    assert torch.isfinite(model(input_ids=torch.tensor([[4, 5, 6]])).logits).all()


@pytest.mark.parametrize(
    ("family", "alike"), [("t5", False), ("gemma2", False), ("qwen2", False), ("llama", True), ("bart", True)]
)
def test_layers_may_be_called_alike_or_not(family: str, alike: bool) -> None:
    assert called_alike(SimpleNamespace(hf=language_model(family))) is alike


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "phi3"])
def test_norms_of_decoders_can_be_smoothed(family: str) -> None:
    import transformers as t

    torch.manual_seed(0)
    made = t.AutoModelForSequenceClassification.from_config(language_config(family, num_labels=3))
    model = LogitsWrapper(prepared(shaken(made))).eval()
    given = rows_for(model, labels=False)
    norm = made.get_submodule("transformer.h.0.ln_2" if family == "gpt2" else "model.layers.0.input_layernorm")
    whole, before = outputs(model, given), norm.weight.detach().clone()
    smooth(model, SmoothQuantConfig(), given)
    assert not torch.equal(norm.weight, before)
    assert torch.allclose(outputs(model, given), whole, atol=1e-5)
