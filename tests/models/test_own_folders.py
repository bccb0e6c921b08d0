"""Folders that hasten alone can read: transformers refuses them, where it would fill matrices at random."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import language_model, save_tokenizer, tiny_config

from hasten.models import adapter_for
from hasten.models.inspect import OWN_WEIGHTS, inspect_checkpoint
from hasten.models.load import load_checkpoint
from hasten.models.prefix import attach_prefixes
from hasten.models.reshape import open_model, save_model
from hasten.models.surgery import LowRankLinear, keep_heads, keep_layers, keep_neurons, replace_module
from hasten.passes.grid import GridSpec, fitted
from hasten.records import InputError, ModelRef
from hasten.tasks import get_task

TASK = get_task("text-classification")
IDS = torch.tensor([[4, 10, 11, 12, 5], [4, 20, 5, 1, 1]])


def classifier() -> Any:
    from transformers import BertForSequenceClassification

    torch.manual_seed(0)
    return BertForSequenceClassification(tiny_config("bert")).eval()


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS, attention_mask=(IDS != 1).long()).logits
    return found


@torch.no_grad()
def each_matrix(model: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    for name, weight in model.named_parameters():
        if "layer." in name and weight.ndim == 2:
            weight.copy_(change(weight))


def on_a_grid(model: Any) -> None:
    spec = GridSpec(bits=4, group=32)
    each_matrix(model, lambda weight: fitted(weight, spec).nearest(weight))


def of_few_values(model: Any) -> None:
    book = torch.randn(7)
    each_matrix(model, lambda weight: book[torch.randint(7, weight.shape)])


def half_zeros(model: Any) -> None:
    each_matrix(model, lambda weight: weight.masked_fill(weight.abs() < weight.abs().median(), 0.0))


def in_half(model: Any) -> None:
    each_matrix(model, lambda weight: weight.bfloat16().float())


def fewer_heads_in_one_layer(model: Any) -> None:
    keep_heads(adapter_for("bert").attention(model.bert.encoder.layer[0]), [1, 3])  # type: ignore[union-attr]


def fewer_neurons_in_one_layer(model: Any) -> None:
    keep_neurons(adapter_for("bert").ffn(model.bert.encoder.layer[1]), range(24))  # type: ignore[union-attr]


def in_thin_factors(model: Any) -> None:
    thin = LowRankLinear(32, 64, rank=4)
    replace_module(model, "bert.encoder.layer.0.intermediate.dense", thin)


def with_prefixes(model: Any) -> None:
    modules = [layer.attention.self for layer in model.bert.encoder.layer]
    attach_prefixes(model, modules, [torch.randn(2, 4, 3, 8) for _ in modules])


WAYS = {
    "grid": on_a_grid, "codebook": of_few_values, "sparse": half_zeros, "half": in_half,
    "heads": fewer_heads_in_one_layer, "neurons": fewer_neurons_in_one_layer, "factors": in_thin_factors,
    "prefixes": with_prefixes,
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_transformers_refuses_and_hasten_opens(way: str, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    model = classifier()
    WAYS[way](model)
    expected = logits(model)
    save_model(model, tmp_path)
    save_tokenizer(tmp_path)
    stored = load_file(tmp_path / OWN_WEIGHTS)
    if way in ("grid", "codebook", "sparse", "half"):
        assert any(name.startswith(f"hasten.{way}.") for name in stored)
    with pytest.raises(OSError, match=r"model\.safetensors"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)
    opened = open_model(type(model), tmp_path, attention="sdpa", dtype=torch.float32)
    torch.testing.assert_close(logits(opened), expected)
    checkpoint = load_checkpoint(ModelRef(str(tmp_path)), task=TASK)
    torch.testing.assert_close(logits(checkpoint.model), expected)


def test_a_decoder_that_was_taken_apart_is_refused(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = language_model("gpt2")
    save_model(model, tmp_path)
    with pytest.raises(OSError, match=r"model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(
        logits(open_model(type(model), tmp_path, attention="sdpa", dtype=torch.float32)), logits(model)
    )


def test_what_transformers_can_read_it_reads(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    model = classifier()
    keep_layers(model, adapter_for("bert"), [0, 3])  # type: ignore[arg-type]
    save_model(model, tmp_path)
    assert not (tmp_path / OWN_WEIGHTS).exists()
    torch.testing.assert_close(
        logits(AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()), logits(model)
    )


def test_a_folder_is_written_over_whole(tmp_path: Path) -> None:
    """Of two files of weights, one would be of the model before."""
    model = classifier()
    plain = logits(model)
    save_model(model, tmp_path)
    half_zeros(model)
    save_model(model, tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == [OWN_WEIGHTS]
    save_model(classifier(), tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    found = open_model(type(model), tmp_path, attention="sdpa", dtype=torch.float32)
    torch.testing.assert_close(logits(found), plain)


def test_what_an_older_version_wrote_still_opens(tmp_path: Path) -> None:
    model = classifier()
    half_zeros(model)
    fewer_heads_in_one_layer(model)
    save_model(model, tmp_path)
    (tmp_path / OWN_WEIGHTS).rename(tmp_path / "model.safetensors")
    save_tokenizer(tmp_path)
    opened = load_checkpoint(ModelRef(str(tmp_path)), task=TASK).model
    torch.testing.assert_close(logits(opened), logits(model))


def test_its_weights_are_those_that_are_looked_at(tmp_path: Path) -> None:
    model = classifier()
    half_zeros(model)
    save_model(model, tmp_path / "one")
    found = inspect_checkpoint(ModelRef(str(tmp_path / "one")), task=TASK)
    assert found.weights == (tmp_path / "one" / OWN_WEIGHTS,)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    path = tmp_path / "two" / OWN_WEIGHTS
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="truncated"):
        inspect_checkpoint(ModelRef(str(tmp_path / "two")), task=TASK)
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    assert config["hasten_compact"] is True
