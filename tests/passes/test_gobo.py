"""GOBO's outliers, centroids and files against what they are defined to be."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification
from unit_cases import outputs, rows_for, tiny

from hasten.models.inspect import OWN_WEIGHTS
from hasten.models.reshape import open_model, save_model
from hasten.passes.gobo import GoboConfig, centroids, gaussian_outliers, nearest, quantize_gobo
from hasten.passes.matrices import encoder_matrices
from hasten.records import InputError
from hasten.tasks.wrappers import LogitsWrapper


def gaussian(count: int, *, deviation: float = 0.04) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(0)) * deviation


def test_outliers_are_those_the_gaussian_does_not_expect() -> None:
    weight = gaussian(20_000).view(100, 200)
    weight[3, 4], weight[5, 6] = 1.0, -1.0
    found = gaussian_outliers(weight, log_density=-4.0)
    law = torch.distributions.Normal(weight.mean(), weight.std(correction=0))
    assert torch.equal(found, law.log_prob(weight) < -4.0)
    assert found[3, 4]
    assert found[5, 6]
    assert 0 < float(found.float().mean()) < 0.005
    assert not gaussian_outliers(torch.ones(4, 4), log_density=-4.0).any()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_centroids_beat_even_steps_and_bins_of_equal_population(bits: int) -> None:
    """On a Gaussian neither equal steps nor equal counts are best, by the L1 distance that GOBO watches."""
    values = gaussian(5000)

    def distance(book: torch.Tensor) -> float:
        return float((values - nearest(values, book)).abs().sum())

    rising = values.sort().values
    steps = torch.linspace(float(rising[0]), float(rising[-1]), 2**bits)
    equal = torch.stack([part.mean() for part in rising.chunk(2**bits)])
    found = centroids(values, bits=bits)
    assert len(found) == 2**bits
    assert distance(found) < 0.9 * distance(steps)
    # With four values the start is hard to beat; with more the tails want values of their own.
    assert distance(found) < distance(equal) * (1.000001 if bits == 2 else 0.99)


def test_the_watched_distance_is_the_real_one() -> None:
    from hasten.passes.gobo import _distance

    rising = gaussian(300).double().sort().values
    sums = torch.cat([torch.zeros(1, dtype=torch.float64), rising.cumsum(0)])
    edges = torch.tensor([0, 40, 200, 300])
    means = torch.tensor([-0.05, 0.0, 0.3], dtype=torch.float64)
    wanted = sum(float((rising[a:b] - m).abs().sum()) for a, b, m in zip(edges, edges[1:], means, strict=False))
    assert _distance(rising, sums, edges, means) == pytest.approx(wanted)


def test_values_that_are_few_are_their_own_centroids() -> None:
    values = torch.tensor([-1.0, 0.5, 2.0, 7.0]).repeat_interleave(torch.tensor([25, 25, 25, 25]))
    assert torch.equal(nearest(values, centroids(values, bits=2)), values)


def test_each_value_goes_to_its_nearest() -> None:
    values, book = gaussian(500), torch.tensor([-0.05, -0.01, 0.02, 0.06])
    by_force = book[(values[:, None] - book).abs().argmin(dim=1)]
    assert torch.equal(nearest(values, book), by_force)


@pytest.mark.parametrize(("bits", "embeddings"), [(3, False), (4, True)])
def test_matrices_hold_few_values_and_their_outliers(bits: Any, embeddings: bool) -> None:
    model = tiny(spread=2.0)
    before = {name: p.clone() for name, p in model.named_parameters()}
    quantize_gobo(model, GoboConfig(bits=bits, embeddings=embeddings), rows_for(model))
    names = {f"hf.{matrix.name}.weight" for matrix in encoder_matrices(model, what="a test")}
    for name, p in model.named_parameters():
        touched = name in names or (embeddings and name.endswith("_embeddings.weight"))
        assert torch.equal(p, before[name]) != touched, name
        if touched:
            outliers = gaussian_outliers(before[name], log_density=-4.0)
            assert torch.equal(p[outliers], before[name][outliers])
            assert len(p[~outliers].unique()) <= 2**bits


@pytest.mark.parametrize(("bits", "share"), [(3, 3 / 32), (4, 4 / 32)])
def test_the_file_is_really_smaller_and_the_model_the_same(bits: Any, share: float, tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=60, hidden_size=96, num_hidden_layers=4, num_attention_heads=4, intermediate_size=384
    )
    torch.manual_seed(0)
    model = LogitsWrapper(BertForSequenceClassification(config)).eval()
    given = rows_for(model)
    sizes = {}
    for name in ("dense", "gobo"):
        if name == "gobo":
            quantize_gobo(model, GoboConfig(bits=bits), given)
        save_model(model.hf, tmp_path / name)
        sizes[name] = sum(path.stat().st_size for path in (tmp_path / name).glob("*.safetensors"))
    weights = sum(m.linear.weight.numel() for m in encoder_matrices(model, what="a test"))
    stored = load_file(tmp_path / "gobo" / OWN_WEIGHTS)
    assert sum(".codebook.codes:" in key for key in stored) == 24
    spent = sizes["gobo"] - (sizes["dense"] - 4 * weights)
    assert share < spent / (4 * weights) < share + 0.03
    again = open_model(type(model.hf), tmp_path / "gobo", attention="sdpa", dtype=torch.float32)
    assert torch.equal(outputs(LogitsWrapper(again), given), outputs(model, given))


def test_more_bits_lose_less() -> None:
    lost = {}
    for bits in (2, 3, 4):
        model = tiny(spread=4.0)
        given = rows_for(model)
        whole = outputs(model, given)
        quantize_gobo(model, GoboConfig(bits=bits), given)
        lost[bits] = float((outputs(model, given) - whole).square().mean())
    assert lost[4] < lost[3] < lost[2]


@pytest.mark.parametrize("bad", [{"bits": 1}, {"bits": 9}, {"log_density": math.nan}])
def test_settings_that_mean_nothing_are_errors(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        GoboConfig(**bad)
