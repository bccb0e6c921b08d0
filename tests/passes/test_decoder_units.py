"""Units of decoders: a key/value head with all its queries, neurons behind a gate, and what they cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import shaken
from torch import nn
from unit_cases import again, check_costs, counts, decoder, macs, said, texts_for, units_of

from hasten.models.adapter import CROSS
from hasten.passes import run_pass
from hasten.passes.entropy import EntropyConfig, sharpness, visible
from hasten.passes.fisher import FisherConfig
from hasten.passes.gradient import GradientConfig
from hasten.passes.kprune import KPruneConfig
from hasten.passes.magnitude import MagnitudeUnitsConfig
from hasten.passes.narrowing import NarrowConfig
from hasten.passes.random_units import RandomUnitsConfig
from hasten.passes.units import PerUnit, by_length
from hasten.records import Config, Rejected
from hasten.tasks.wrappers import TokensWrapper

# Grouped and not, fused and not, with norms within heads, and with one behind each sublayer.
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gpt2", "gemma2")
UNITS = (
    FisherConfig(keep=0.6, round_to=8, tune=False),
    GradientConfig(keep=0.6, round_to=8),
    MagnitudeUnitsConfig(keep=0.6, round_to=8),
    RandomUnitsConfig(keep=0.6, round_to=8),
)
IN_TURN = (FisherConfig(keep=0.6, round_to=8), KPruneConfig(keep=0.6, round_to=8), EntropyConfig(keep=0.6, round_to=8))


def some_masks(model: Any) -> PerUnit:
    """One group of the second layer goes, and some neurons everywhere."""
    masks = units_of(model).ones()
    masks.heads[1][0] = 0.0
    for number, mask in enumerate(masks.neurons):
        mask[number : number + 20] = 0.0
    return masks


@pytest.mark.parametrize("family", FAMILIES)
def test_a_masked_decoder_is_what_surgery_leaves(family: str, tmp_path: Path) -> None:
    model, given = decoder(family), texts_for()
    units, masks = units_of(model), some_masks(model)
    whole = said(model, given)
    with units.masked(masks):
        masked = said(model, given)
    assert torch.equal(said(model, given), whole), "the hooks are gone"
    before = counts(model)[0]
    units.keep(masks)
    assert counts(model) == ([before[0], before[1] - 1, before[2]], [28] * 3)
    assert torch.allclose(said(model, given), masked, atol=1e-5)
    assert not torch.allclose(masked, whole, atol=1e-3)
    assert torch.allclose(said(again(model, tmp_path), given), masked, atol=1e-5)


def test_gradients_are_finite_differences_of_each_text() -> None:
    model, given = decoder().double(), texts_for(count=4)
    units = units_of(model)
    (found,), (order,) = list(units.gradients(given, rows=4)), by_length(given, rows=4)
    step = 1e-2  # norms and positions are computed in fp32 whatever the model is in
    for layer, group, row in ((0, 1, 2), (2, 0, 3)):
        losses = []
        for value in (1 + step, 1 - step):
            masks = units.ones().map(torch.Tensor.double)
            masks.heads[layer][group] = value
            with torch.no_grad(), units.masked(masks):
                batch = given.head(4)[row]
                losses.append(-model(**batch)[0, :-1, 0].sum())
        expected = float(losses[0] - losses[1]) / (2 * step)
        assert abs(expected) > 1e-6
        assert float(found.heads[layer][order.index(row), group]) == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_costs_are_the_macs_that_matrix_products_take(family: str) -> None:
    check_costs(decoder(family, attn_implementation="eager"), texts_for(count=1), head=1)


def test_a_group_costs_by_its_queries_and_its_key() -> None:
    """4 heads of 8 in 2 groups on 32 coordinates: by hand."""
    given = texts_for(count=1)
    tokens = given.rows[0]["input_ids"].shape[1]
    cost = units_of(decoder()).costs(given)
    assert cost.head == tokens * 32 * (16 + 8 + 8 + 16) + 2 * tokens**2 * 16
    assert cost.neuron == 3 * tokens * 32


@pytest.mark.parametrize("config", [*UNITS, *IN_TURN], ids=lambda config: config.label)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_budgets_hold_and_folders_open(family: str, config: Config, tmp_path: Path) -> None:
    model, given = decoder(family), texts_for()
    before = macs(model, given)
    made = run_pass(model, config, given)
    assert macs(made, given) <= config.keep * before * (1 + 1e-9)  # type: ignore[attr-defined]
    found = said(made, given)
    assert torch.isfinite(found).all()
    assert torch.allclose(said(again(made, tmp_path), given), found, atol=1e-5)


@pytest.mark.parametrize("config", UNITS, ids=lambda config: config.kind)
def test_layers_that_see_differently_lose_units_all_the_same(config: Config) -> None:
    model, given = decoder("gemma2"), texts_for(targets=False)
    assert torch.isfinite(said(run_pass(model, config, given), given)).all()


@pytest.mark.parametrize("config", IN_TURN, ids=lambda config: config.kind)
def test_gemma_is_not_walked_through(config: Config) -> None:
    with pytest.raises(Rejected, match=r"layers differ in that|norm stands between"):
        run_pass(decoder("gemma2"), config, texts_for())


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_a_narrow_decoder(family: str, tmp_path: Path) -> None:
    model, given = decoder(family), texts_for()
    made = run_pass(model, NarrowConfig(keep=0.5, round_to=8), given)
    assert made.hf.config.hidden_size == 16
    found = said(made, given)
    assert torch.allclose(said(again(made, tmp_path), given), found, atol=1e-5)


def test_experts_are_no_neurons_of_one_block() -> None:
    with pytest.raises(Rejected, match=r"4 experts, and this needs one FFN"):
        units_of(decoder("mixtral"))


def test_two_stacks_are_refused_by_name() -> None:
    with pytest.raises(Rejected, match=r"one stack, and this bart has encoder and decoder"):
        units_of(decoder("bart"))


def test_t5_encoders_lose_heads_once_their_tables_are_apart() -> None:
    from transformers import T5Config, T5ForTokenClassification

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=66, d_model=32, d_kv=8, d_ff=48, num_layers=3, num_heads=4, relative_attention_num_buckets=8,
        num_labels=3, pad_token_id=1,
    )  # fmt: skip
    model = TokensWrapper(shaken(T5ForTokenClassification(config))).eval()
    ((batch, _),) = texts_for(count=6).batches(batch=6)
    with torch.inference_mode():
        whole = model(**batch)
        units = units_of(model)
        assert torch.allclose(model(**batch), whole, atol=1e-6), "tables apart compute the same"
        assert all(parts.reads != CROSS for parts in units.attention)
        masks = units.ones()
        masks.heads[0][1] = masks.heads[2][3] = 0.0
        with units.masked(masks):
            masked = model(**batch)
        units.keep(masks)
        assert counts(model)[0] == [3, 4, 3]
        real = batch["attention_mask"].bool()
        assert torch.allclose(model(**batch)[real], masked[real], atol=1e-5)
        assert not torch.allclose(masked[real], whole[real], atol=1e-3)


def test_decoders_look_back_only() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    assert visible(mask, backwards=True).tolist() == [[1, 2, 3, 0], [1, 2, 3, 4]]
    assert visible(mask, backwards=True, window=2).tolist() == [[1, 2, 2, 0], [1, 2, 2, 2]]
    assert visible(mask).tolist() == [[3, 3, 3, 0], [4, 4, 4, 4]]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_heads_that_look_back_evenly_go_first(family: str) -> None:
    model, given = decoder(family), texts_for(count=6)
    parts = units_of(model).attention[1]
    linear: nn.Linear = parts.query
    with torch.no_grad():  # the queries of the last group ask nothing
        rows = slice((parts.groups - 1) * parts.group_dim, parts.groups * parts.group_dim)
        linear.weight[rows] = 0.0
        linear.bias[rows] = 0.0
    scores = sharpness(units_of(model), [batch for batch, _ in given.batches(batch=6)])
    assert float(scores.heads[1][-1]) == pytest.approx(0.0, abs=1e-5)
    assert all(float(score.min()) >= -1e-5 for score in scores.heads)
    assert float(scores.heads[0].min()) > 1e-4
