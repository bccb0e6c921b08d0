"""What the experts of a mixture take: real tokens alone, and for some of them none at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from unit_cases import again, decoder, said, texts_for

from hasten.models.adapter import FeedForward
from hasten.passes import run_pass
from hasten.passes.calibration import padded
from hasten.passes.family import adapter_of
from hasten.passes.gptq import GptqConfig
from hasten.passes.llm_int8 import LlmInt8Config
from hasten.passes.reconstruction import Walk
from hasten.passes.routing import unpadded
from hasten.passes.smooth_quant import input_maxima
from hasten.passes.sparsegpt import SparseGptConfig
from hasten.passes.sparsity import second_moments
from hasten.passes.taylor import TaylorConfig
from hasten.passes.units import batches_of, real_tokens
from hasten.passes.wanda import WandaConfig, weight_scores
from hasten.records import Config
from hasten.tasks.wrappers import NextTokenWrapper

FAMILIES = ("mixtral", "qwen2_moe", "qwen3_moe")
PASSES = (
    WandaConfig(), SparseGptConfig(), GptqConfig(group=None), LlmInt8Config(threshold=2.0), TaylorConfig(batch=1),
)  # fmt: skip


def blocks(model: NextTokenWrapper, *, layer: int) -> tuple[FeedForward, ...]:
    adapter = adapter_of(model, what="a test")
    return adapter.ffns(adapter.layers(model.hf)[layer])


def lonely(model: NextTokenWrapper, *, layer: int) -> FeedForward:
    """Make the router of a layer never choose its first expert, and give that."""
    adapter = adapter_of(model, what="a test")
    found = adapter.layers(model.hf)[layer]

    def hook(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        states, chosen, shares = inputs
        return states, torch.where(chosen == 0, 3, chosen), shares

    found.get_submodule("mlp.experts").register_forward_pre_hook(hook)
    return blocks(model, layer=layer)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_moments_are_those_of_rows_without_padding(family: str) -> None:
    model, given = decoder(family), texts_for(count=9)
    layer = adapter_of(model, what="a test").layers(model.hf)[2]
    linears = [ffn.inputs[0] for ffn in blocks(model, layer=2)] + [ffn.down for ffn in blocks(model, layer=2)]
    layers = adapter_of(model, what="a test").layers(model.hf)
    walks = [Walk(model, layers, rows) for rows in (batches_of(given, rows=9), [padded([row]) for row in given.rows])]
    for walk in walks:
        for below in layers[:2]:
            walk.advance(below)
    together, alone = (second_moments(walk, layer, linears) for walk in walks)
    for one, other in zip(together, alone, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert all(moment.any() for moment in alone)
    maxima = [input_maxima(model, linears, rows) for rows in (walks[0].batches, walks[1].batches)]
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(*maxima, strict=True))


def test_real_tokens_say_what_they_said() -> None:
    model, given = decoder("mixtral"), texts_for(count=9)
    (batch,) = batches_of(given, rows=9)
    with torch.inference_mode():
        whole = model.rows(model(**batch), batch)
        with unpadded(model, [batch]):
            found = model.rows(model(**batch), batch)
        assert torch.allclose(found, whole, atol=1e-6)
    assert torch.equal(model.rows(model(**batch), batch), whole), "the hooks are gone"


def test_tokens_in_a_row_lose_their_padding() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    states = torch.arange(12.0).view(2, 3, 2)
    rows = real_tokens(states, {"attention_mask": mask})
    assert torch.equal(rows, states[mask.bool()])
    assert torch.equal(real_tokens(states.flatten(0, 1), {"attention_mask": mask}), rows)
    assert torch.equal(real_tokens(rows, {"attention_mask": mask}), rows)


@pytest.mark.parametrize("config", PASSES, ids=lambda config: config.kind)
@pytest.mark.parametrize("family", FAMILIES)
def test_passes_over_numbers_take_mixtures(family: str, config: Config, tmp_path: Path) -> None:
    model, given = decoder(family), texts_for(count=12)
    before = [ffn.down.weight.detach().clone() for ffn in blocks(model, layer=2)]
    made = run_pass(model, config, given)
    found = said(made, given)
    assert torch.isfinite(found).all()
    assert not any(torch.equal(old, ffn.down.weight) for old, ffn in zip(before, blocks(made, layer=2), strict=True)), (
        "every expert has changed"
    )
    assert torch.allclose(said(again(made, tmp_path), given), found, atol=1e-4)


@pytest.mark.parametrize("config", PASSES, ids=lambda config: config.kind)
def test_an_expert_that_nobody_asked_for(config: Config) -> None:
    model, given = decoder("mixtral"), texts_for(count=6)
    expert = lonely(model, layer=1)
    before = expert.down.weight.detach().clone()
    made = run_pass(model, config, given)
    assert torch.isfinite(said(made, given)).all()
    assert torch.isfinite(expert.down.weight).all()
    if isinstance(config, WandaConfig):  # by its weights alone, the smaller half of each row
        kept = expert.down.weight != 0
        assert torch.equal(kept.sum(dim=1), torch.full((32,), 24))
        for row, mask in zip(before.abs(), kept, strict=True):
            assert float(row[mask].min()) >= float(row[~mask].max())


def test_scores_without_inputs_are_the_weights() -> None:
    weight = torch.tensor([[1.0, -2.0]])
    assert torch.equal(weight_scores(weight, torch.zeros(2)), weight.abs())
    assert torch.equal(weight_scores(weight, torch.tensor([4.0, 0.0])), torch.tensor([[2.0, 0.0]]))
