"""Image families: the adapters name the right parts, and surgery computes what masking would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from family_cases import reopened, reshape, take_units
from tiny_models import IMAGES, SIDE, tiny_config
from torch import Tensor, nn

from hasten.models import adapter_for
from hasten.models.adapter import Adapter
from hasten.models.load import load_checkpoint
from hasten.models.reshape import MARK, open_model, save_model
from hasten.models.surgery import keep_heads, keep_layers, keep_neurons, keep_width
from hasten.records import ModelRef
from hasten.tasks import get_task

Checkpoints = Callable[[str], Path]
# DINOv2's largest model has a gate; DeiT's own checkpoints have a second head for the distillation token.
KINDS = (*IMAGES, "gated", "two heads")


def family_of(kind: str) -> str:
    return {"gated": "dinov2", "two heads": "deit"}.get(kind, kind)


def adapter_of(kind: str) -> Adapter:
    found = adapter_for(family_of(kind))
    assert found is not None
    return found


def made(kind: str, *, seed: int = 0) -> Any:
    """A random model whose layers matter; DINOv2's scales are drawn too."""
    import transformers

    changes = {"use_swiglu_ffn": True} if kind == "gated" else {}
    config = tiny_config(family_of(kind), **changes)
    torch.manual_seed(seed)
    teacher = transformers.DeiTForImageClassificationWithTeacher
    model = teacher(config) if kind == "two heads" else transformers.AutoModelForImageClassification.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "layer" in name:
                weight *= 6.0
            elif weight.ndim != 4 and "norm" not in name:
                weight += 0.3 * torch.randn(weight.shape)
    return model.eval()


def pixels() -> Tensor:
    return torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(7))


def logits(model: Any) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(pixel_values=pixels()).logits
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_anatomy(kind: str) -> None:
    model, adapter = made(kind), adapter_of(kind)
    layers = adapter.layers(model)
    assert len(layers) == 4
    attention, ffn = adapter.attention(layers[0]), adapter.ffn(layers[0])
    assert (attention.heads, attention.head_dim) == (4, 8)
    assert attention.query is not attention.key
    assert attention.output.in_features == attention.value.out_features == 32
    width = 48 if kind == "gated" else 64
    assert all(linear.in_features == 32 and linear.out_features == width for linear in ffn.inputs)
    assert (len(ffn.inputs), ffn.down.in_features) == (2 if kind == "gated" else 1, width)
    assert [type(norm) for norm in adapter.norms(layers[0])] == [nn.LayerNorm] * 2
    assert adapter.norm_first
    assert [len(scale) for scale in adapter.scales(layers[0])] == ([32, 32] if family_of(kind) == "dinov2" else [])
    assert sum(p.numel() for p in adapter.embeddings(model).parameters()) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_norms_feed_what_the_protocol_says_and_tokens_are_counted(kind: str) -> None:
    model, adapter = made(kind), adapter_of(kind)
    layer = adapter.layers(model)[1]
    attention, ffn, norms = adapter.attention(layer), adapter.ffn(layer), adapter.norms(layer)
    seen: dict[nn.Module, Tensor] = {}
    for norm in norms:
        norm.register_forward_hook(lambda module, _inputs, output: seen.update({module: output}))
    for linear in (*attention.inputs, *ffn.inputs):
        linear.register_forward_pre_hook(lambda module, inputs: seen.update({module: inputs[0]}))
    logits(model)
    assert all(torch.equal(seen[linear], seen[norms[0]]) for linear in attention.inputs)
    assert all(torch.equal(seen[linear], seen[norms[1]]) for linear in ffn.inputs)
    assert adapter.tokens(model, {"pixel_values": pixels()[:1].numpy()}) == seen[norms[0]].shape[1]


@pytest.mark.parametrize("kind", KINDS)
def test_removed_heads_and_neurons_equal_masked_ones(kind: str) -> None:
    masked, cut = made(kind), made(kind)
    take_units(masked, cut)
    assert torch.allclose(logits(cut), logits(masked), atol=1e-5)
    assert not torch.allclose(logits(cut), logits(made(kind)), atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_removed_layers_equal_layers_that_add_nothing(kind: str, tmp_path: Path) -> None:
    silent, cut, adapter = made(kind), made(kind), adapter_of(kind)
    with torch.no_grad():
        for number in (1, 2):
            layer = adapter.layers(silent)[number]
            for linear in (adapter.attention(layer).output, adapter.ffn(layer).down):
                linear.weight.zero_()
                linear.bias.zero_()
    keep_layers(cut, adapter, [0, 3])
    assert cut.config.num_hidden_layers == 2
    assert torch.allclose(logits(cut), logits(silent), atol=1e-5)
    save_model(cut, tmp_path)
    assert not hasattr(cut.config, MARK)
    plain = type(cut).from_pretrained(tmp_path).eval()
    assert torch.allclose(logits(plain), logits(cut), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_reshaped_model_survives_its_folder(kind: str, tmp_path: Path) -> None:
    model = made(kind)
    reshape(model)
    assert torch.allclose(logits(reopened(model, tmp_path)), logits(model), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_narrower_model_survives_its_folder(kind: str, tmp_path: Path) -> None:
    model, adapter = made(kind), adapter_of(kind)
    for layer in adapter.layers(model):
        keep_heads(adapter.attention(layer), range(2))
    keep_width(model, adapter, range(0, 32, 2), head_dim=8)
    assert model.config.hidden_size == 16
    assert model.config.num_attention_heads == 2
    found = logits(model)
    assert found.shape == (3, 3)
    save_model(model, tmp_path)
    opened = open_model(type(model), tmp_path, attention="sdpa", dtype=torch.float32)
    assert torch.allclose(logits(opened), found, atol=1e-5)
    left = {p.shape[-1] for p in model.parameters() if p.ndim == 3}
    assert left == {16}, "tokens and positions"


@pytest.mark.parametrize("family", IMAGES)
def test_a_checkpoint_loads_with_its_settings(family: str, checkpoint: Checkpoints) -> None:
    found = load_checkpoint(ModelRef(str(checkpoint(family))), task=get_task("image-classification"))
    assert (found.family, found.labels) == (family, ("no", "yes", "maybe"))
    assert found.input_names == ("pixel_values",)
    assert set(found.processor_files) == {"preprocessor_config.json"}
    assert found.max_length == 1


@pytest.mark.real
def test_a_checkpoint_with_older_names_is_saved_with_its_own(shared: Path, tmp_path: Path) -> None:
    """On disk the weights have names of before transformers 5; what is cut and saved opens by the modules' names."""
    source = shared / "models" / "vit-fashion"
    model = load_checkpoint(ModelRef(str(source)), task=get_task("image-classification")).model
    adapter = adapter_of("vit")
    keep_neurons(adapter.ffn(adapter.layers(model)[0]), range(64))
    save_model(model, tmp_path)
    opened = open_model(type(model), tmp_path, attention="sdpa", dtype=torch.float32)
    grey = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(opened(pixel_values=grey).logits, model(pixel_values=grey).logits, atol=1e-5)
