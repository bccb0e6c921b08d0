"""Low rank of a mixture: every expert's matrices, by the tokens that went to it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from test_routing import blocks, lonely
from unit_cases import again, decoder, said, texts_for

from hasten.models.surgery import LowRankLinear
from hasten.passes.calibration import padded
from hasten.passes.family import adapter_of
from hasten.passes.low_rank import LowRankConfig, factorise, factors, input_moments
from hasten.passes.reconstruction import Walk
from hasten.passes.units import batches_of
from hasten.records import Rejected


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_every_expert_becomes_thin_and_comes_back(family: str, tmp_path: Path) -> None:
    model, given = decoder(family), texts_for(count=24)
    routers = [m.weight.detach().clone() for n, m in model.hf.named_modules() if n.endswith("mlp.gate")]
    made = factorise(model, LowRankConfig(keep=0.7), given)
    for number in range(3):
        parts = [part for ffn in blocks(made, layer=number) for part in (*ffn.inputs, ffn.down)]
        assert all(isinstance(part, LowRankLinear) for part in parts)
    after = [m.weight for n, m in made.hf.named_modules() if n.endswith("mlp.gate")]
    assert all(torch.equal(a, b) for a, b in zip(routers, after, strict=True))
    found = said(made, given)
    assert torch.isfinite(found).all()
    assert torch.allclose(said(again(made, tmp_path), given), found, atol=1e-4)
    with pytest.raises(Rejected, match="factorised already"):
        factorise(made, LowRankConfig(keep=0.7), given)


def test_moments_are_those_of_an_expert_s_own_tokens() -> None:
    """Whatever other rows share its batch, and though a batch may bring it none."""
    model, given = decoder("mixtral"), texts_for(count=9)
    layers = adapter_of(model, what="a test").layers(model.hf)
    linears = [ffn.down for ffn in blocks(model, layer=0)]
    walks = [Walk(model, layers, rows) for rows in (batches_of(given, rows=9), [padded([row]) for row in given.rows])]
    together, alone = (input_moments(walk, layers[0], linears) for walk in walks)
    for one, other in zip(together, alone, strict=True):
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(one, other, strict=True))


def test_an_expert_that_nobody_asked_for_is_factorised_by_its_weights() -> None:
    model, given = decoder("mixtral"), texts_for(count=6)
    weight = lonely(model, layer=1).down.weight.detach().clone()
    made = factorise(copy.deepcopy(model), LowRankConfig(keep=0.7), given)
    thin = blocks(made, layer=1)[0].down
    assert isinstance(thin, LowRankLinear)
    first, second = factors(weight.double(), torch.eye(weight.shape[1], dtype=torch.float64), rank=thin.rank)
    product = thin.second.weight @ thin.first.weight
    assert torch.allclose(product, (second @ first).float(), atol=1e-5)
    assert torch.isfinite(said(made, given)).all()
