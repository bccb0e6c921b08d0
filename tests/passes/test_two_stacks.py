"""Heads and neurons of encoder-decoders: both stacks lose the same share, and so does the attention between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_every_family import model_of, rows_of
from unit_cases import said, units_of

from hasten.models.reshape import open_model, save_model
from hasten.passes import run_pass
from hasten.passes.gradient import GradientConfig
from hasten.passes.magnitude import MagnitudeUnitsConfig
from hasten.passes.random_units import RandomUnitsConfig
from hasten.passes.units import PerUnit
from hasten.records import Config
from hasten.tasks.generation_wrappers import Seq2SeqGenerationWrapper

FAMILIES = ("t5", "bart", "whisper")
PASSES = (
    GradientConfig(keep=0.5, round_to=8),
    MagnitudeUnitsConfig(keep=0.5, round_to=8),
    RandomUnitsConfig(keep=0.5, round_to=8),
)


def sizes(model: Any) -> list[tuple[int, int]]:
    """Heads and neurons of the encoder, the decoder, and the attention between them."""
    units = units_of(model, stacks="several")
    heads, neurons = [own.groups for own in units.attention], [own.neurons for own in units.ffn]
    return [(sum(heads[of]), sum(neurons[at])) for of, at in units.parts]


def again(model: Any, folder: Path) -> Any:
    save_model(model.hf, folder)
    opened = open_model(type(model.hf), folder, attention="sdpa", dtype=torch.float32)
    return Seq2SeqGenerationWrapper(opened).eval()


@pytest.mark.parametrize("config", PASSES, ids=lambda config: config.kind)
@pytest.mark.parametrize("family", FAMILIES)
def test_each_part_keeps_the_share(family: str, config: Config, tmp_path: Path) -> None:
    model, given = model_of(family), rows_of(family)
    before = sizes(model)
    made = run_pass(model, config, given)
    for (heads, neurons), (old_heads, old_neurons) in zip(sizes(made), before, strict=True):
        assert heads == round(0.5 * old_heads)
        assert abs(neurons - 0.5 * old_neurons) <= 8
    assert torch.allclose(said(again(made, tmp_path), given), said(made, given), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_masked_units_are_what_surgery_leaves_while_text_is_written(family: str) -> None:
    model, given = model_of(family), rows_of(family, count=4)
    units = units_of(model, stacks="several")
    masks = units.ones()
    for mask in masks.heads:
        mask[0] = 0.0
    for mask in masks.neurons:
        mask[:7] = 0.0
    whole = written(model, given)
    with units.masked(masks):
        masked = written(model, given)
    units.keep(masks)
    assert torch.allclose(written(model, given), masked, atol=1e-4)
    assert not torch.allclose(masked, whole, atol=1e-3)


@torch.inference_mode()
def written(model: Any, given: Any) -> torch.Tensor:
    """Logits of six decoder steps over the cache, the same tokens every time."""
    batch, forced = given.head(1)[0], torch.tensor([[0, 5, 9, 4, 7, 11]])
    found, past = [], None
    for token in forced.T:
        out = model.hf(**batch, decoder_input_ids=token[:, None], past_key_values=past, use_cache=True)
        past = out.past_key_values
        found.append(out.logits[:, -1])
    return torch.cat(found)


def test_parts_are_put_together_again() -> None:
    units = units_of(model_of("t5"), stacks="several")
    ones = units.ones()
    assert len(ones.heads) == len(ones.neurons) * 3 // 2
    found = units.apart(ones.map(lambda mask: mask * 2).both())
    assert isinstance(found, PerUnit)
    assert [len(mask) for mask in found.heads] == [len(mask) for mask in ones.heads]
    assert [len(mask) for mask in found.neurons] == [len(mask) for mask in ones.neurons]
