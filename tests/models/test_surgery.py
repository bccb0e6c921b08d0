"""Surgery computes what masking would, and a reshaped model survives its folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from family_cases import reopened, reshape, take_units

from hasten.models import adapter_for
from hasten.models.inspect import OWN_WEIGHTS
from hasten.models.load import load_checkpoint
from hasten.models.reshape import MARK, open_model, save_model
from hasten.models.surgery import keep_layers, keep_neurons
from hasten.records import InputError, ModelRef
from hasten.tasks import get_task

FAMILIES = ("bert", "roberta", "distilbert", "electra")
Checkpoints = Callable[[str], Path]
IDS = torch.tensor([[4, 10, 11, 12, 5, 1], [4, 20, 21, 5, 1, 1]])


def loaded(folder: Path) -> Any:
    return load_checkpoint(ModelRef(str(folder)), task=get_task("text-classification")).model


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=IDS, attention_mask=(IDS != 1).long()).logits
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_removed_heads_and_neurons_equal_masked_ones(family: str, checkpoint: Checkpoints) -> None:
    masked, cut = loaded(checkpoint(family)), loaded(checkpoint(family))
    take_units(masked, cut)
    assert torch.allclose(logits(cut), logits(masked), atol=1e-6)
    assert not torch.allclose(logits(cut), logits(loaded(checkpoint(family))), atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reshaped_model_survives_its_folder(family: str, checkpoint: Checkpoints, tmp_path: Path) -> None:
    model = loaded(checkpoint(family))
    reshape(model)
    assert torch.allclose(logits(reopened(model, tmp_path)), logits(model), atol=1e-6)


def test_a_model_with_fewer_layers_only_needs_no_mark(checkpoint: Checkpoints, tmp_path: Path) -> None:
    model = loaded(checkpoint("bert"))
    keep_layers(model, adapter_for("bert"), [0, 3])  # type: ignore[arg-type]
    save_model(model, tmp_path)
    assert not hasattr(model.config, MARK)
    assert torch.allclose(logits(type(model).from_pretrained(tmp_path).eval()), logits(model), atol=1e-6)


def test_weights_that_fit_nothing_are_refused(checkpoint: Checkpoints, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = loaded(checkpoint("bert"))
    keep_neurons(adapter_for("bert").ffn(adapter_for("bert").layers(model)[0]), range(8))  # type: ignore[union-attr]
    save_model(model, tmp_path)
    weights = load_file(tmp_path / OWN_WEIGHTS)
    gone = weights.pop("bert.encoder.layer.1.output.dense.weight")
    save_file(weights, tmp_path / OWN_WEIGHTS)
    with pytest.raises(InputError, match="missing"):
        open_model(type(model), tmp_path, attention="sdpa", dtype=torch.float32)
    save_file({**weights, "bert.encoder.layer.1.output.dense.weight": gone.T.contiguous()[:3]}, tmp_path / OWN_WEIGHTS)
    with pytest.raises(InputError, match="do not fit"):
        open_model(type(model), tmp_path, attention="sdpa", dtype=torch.float32)
