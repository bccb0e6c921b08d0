"""Weights without a place: layers that the config does not count are refused, what nobody needs is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from task_models import save_task_model

from hasten.models.load import load_checkpoint
from hasten.records import InputError, ModelRef
from hasten.tasks import get_task

# Of each task's tiny checkpoint: which config says one layer less than there is.
FEWER = {
    "text-classification": {"num_hidden_layers": 3},
    "image-classification": {"num_hidden_layers": 3},
    "text-generation": {"n_layer": 1},
    "summarization": {"num_decoder_layers": 1},
    "translation": {"encoder_layers": 2, "num_hidden_layers": 2},
    "speech-recognition": {"decoder_layers": 1},
    "feature-extraction": {"num_hidden_layers": 1},
}
# What older versions, pre-training and other tasks leave in a file.
NEEDLESS = {
    "text-classification": ("bert.embeddings.position_ids", "cls.predictions.transform.dense.weight", "qa.bias"),
    "text-generation": ("transformer.h.0.attn.masked_bias", "transformer.h.1.attn.bias"),
    "feature-extraction": ("cls.predictions.decoder.weight", "classifier.bias", "embeddings.position_ids"),
    "translation": ("model.encoder.version", "model.decoder.version"),
    "speech-recognition": ("model.encoder.layers.0.self_attn.rotary_emb.inv_freq", "projector.weight"),
}  # fmt: skip


def edit(folder: Path, **changes: int) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize("task", FEWER)
def test_layers_that_the_config_does_not_count_are_refused(task: str, tmp_path: Path) -> None:
    folder = save_task_model(tmp_path / "model", task)
    load_checkpoint(ModelRef(str(folder)), task=get_task(task))
    edit(folder, **FEWER[task])
    with pytest.raises(InputError, match=r"have 1 layer that its config\.json does not count") as caught:
        load_checkpoint(ModelRef(str(folder)), task=get_task(task))
    assert "to do: correct the number of layers" in str(caught.value)


def test_a_classifiers_layers_are_counted_where_only_its_encoder_is_read(tmp_path: Path) -> None:
    """The names in the file begin otherwise than the model's own."""
    folder = save_task_model(tmp_path / "model", "text-classification")
    load_checkpoint(ModelRef(str(folder)), task=get_task("feature-extraction"))
    edit(folder, num_hidden_layers=2)
    with pytest.raises(InputError, match="have 2 layers that its"):
        load_checkpoint(ModelRef(str(folder)), task=get_task("feature-extraction"))


@pytest.mark.parametrize("task", NEEDLESS)
def test_what_nobody_needs_may_be_left_over(task: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_task_model(tmp_path / "model", task)
    path = folder / "model.safetensors"
    weights = load_file(path)
    assert not weights.keys() & set(NEEDLESS[task])
    weights |= {name: torch.zeros(3) for name in NEEDLESS[task]}
    save_file(weights, path, metadata={"format": "pt"})
    assert load_checkpoint(ModelRef(str(folder)), task=get_task(task)).family
