"""Masks of single weights, the scores behind them, and what stays true of a thinned model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from unit_cases import outputs, rows_for, tiny

from hasten.models.surgery import LowRankLinear
from hasten.passes import run_pass
from hasten.passes.calibration import Calibration, Progress
from hasten.passes.low_rank import LowRankConfig, factorise
from hasten.passes.magnitude_weights import MagnitudeConfig, prune_magnitude
from hasten.passes.matrices import by_source, encoder_matrices
from hasten.passes.reconstruction import Walk
from hasten.passes.sparsegpt import SparseGptConfig
from hasten.passes.sparsity import layer_by_layer, masks_of, pattern_mask, pattern_of, second_moments, zero_share
from hasten.passes.taylor import TaylorConfig, weight_scores
from hasten.passes.units import batches_of
from hasten.passes.wanda import WandaConfig
from hasten.records import InputError, Rejected

PASSES = (MagnitudeConfig, TaylorConfig, WandaConfig, SparseGptConfig)


def scores_of(*shapes: tuple[int, int], levels: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = [torch.rand(shape, generator=generator) for shape in shapes]
    return [(score * levels).floor() for score in found] if levels else found


@settings(deadline=None)
@given(share=st.floats(0.01, 0.99), levels=st.sampled_from([0, 1, 3]))
def test_exactly_the_lowest_go(share: float, levels: int) -> None:
    """Also where many scores are equal."""
    scores = scores_of((5, 8), (7, 6), levels=levels)
    flat = torch.cat([score.flatten() for score in scores])
    kept = torch.cat([mask.flatten() for mask in masks_of(scores, sparsity=share)])
    assert int((~kept).sum()) == round(share * 82)
    if kept.any() and not kept.all():
        assert float(flat[~kept].max()) <= float(flat[kept].min())
    for score, mask in zip(scores, masks_of(scores, sparsity=share, scope="matrix"), strict=True):
        assert int((~mask).sum()) == round(share * score.numel())
    for score, mask in zip(scores, masks_of(scores, sparsity=share, scope="row"), strict=True):
        assert set((~mask).sum(dim=1).tolist()) == {round(share * score.shape[1])}
        for row in range(len(score)):
            lost, stays = score[row][~mask[row]], score[row][mask[row]]
            assert not len(lost) or not len(stays) or float(lost.max()) <= float(stays.min())


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:4", "3:4"])
def test_a_pattern_keeps_the_best_of_every_group(pattern: str) -> None:
    kept, group = pattern_of(pattern)
    score = scores_of((6, 16))[0]
    mask = pattern_mask(score, pattern)
    for row in range(6):
        for start in range(0, 16, group):
            own, stays = score[row, start : start + group], mask[row, start : start + group]
            assert int(stays.sum()) == kept
            assert float(own[~stays].max()) < float(own[stays].min())


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(Rejected, match="not a number"):
        masks_of([torch.tensor([[1.0, float("nan")]])], sparsity=0.5)


@pytest.mark.parametrize("config", PASSES)
@pytest.mark.parametrize("pattern", [None, "2:4"])
@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_every_pass_makes_the_zeros_it_promises(config: Any, pattern: str | None, family: str) -> None:
    model = tiny(family, spread=4.0)
    before = {name: p.clone() for name, p in model.named_parameters()}
    told: list[Progress] = []
    calm = rows_for(model)
    rows = Calibration(calm.rows, targets=calm.targets, listen=told.append)
    made = run_pass(model, config(sparsity=0.5, pattern=pattern), rows)
    matrices = encoder_matrices(made, what="a test")
    assert len(matrices) == 4 * 6
    assert zero_share(matrices) == pytest.approx(0.5, abs=1e-3)
    assert "50.0%" in told[-1].what
    names = {f"hf.{matrix.name}.weight" for matrix in matrices}
    for name, p in made.named_parameters():
        assert torch.equal(p, before[name]) == (name not in names), name
    if pattern:
        for matrix in matrices:
            assert int((matrix.linear.weight != 0).view(-1, 4).sum(dim=1).max()) == 2
    assert not any(torch.signbit(m.linear.weight[m.linear.weight == 0]).any() for m in matrices), "no -0.0"


def test_factors_are_matrices_too() -> None:
    model = tiny(spread=4.0)
    rows = rows_for(model)
    factorise(model, LowRankConfig(keep=0.5, which="all"), rows)
    matrices = encoder_matrices(model, what="a test")
    assert len(matrices) == 4 * 12
    assert all(model.hf.get_submodule(matrix.name) is matrix.linear for matrix in matrices)
    # First factors of query, key and value share their inputs; every second factor has its own.
    assert sorted(len(g) for g in by_source([m for m in matrices if m.layer == 0])) == [1] * 9 + [3]
    for config in PASSES:
        thin = run_pass(copy.deepcopy(model), config(sparsity=0.5), rows)
        assert zero_share(encoder_matrices(thin, what="a test")) == pytest.approx(0.5, abs=1e-3)


def test_what_is_no_matrix_is_refused_by_name() -> None:
    model = tiny()
    model.hf.bert.encoder.layer[1].output.dense = nn.Identity()
    with pytest.raises(Rejected, match=r"layer\.1\.output\.dense, which is a Identity"):
        prune_magnitude(model, MagnitudeConfig(), rows_for(tiny()))


@pytest.mark.parametrize("config", PASSES)
def test_a_pattern_that_does_not_fit_is_refused(config: Any) -> None:
    model = tiny()
    model.hf.bert.encoder.layer[2].output.dense = LowRankLinear(64, 32, rank=6)
    with pytest.raises(Rejected, match=r"6 inputs of .*layer\.2\.output\.dense\.second are no multiple of 4"):
        run_pass(model, config(sparsity=0.5, pattern="2:4"), rows_for(tiny()))


@pytest.mark.parametrize(
    "bad",
    [
        {"sparsity": 0.0}, {"sparsity": 1.0}, {"sparsity": float("nan")}, {"pattern": "4:2", "sparsity": 0.5},
        {"pattern": "2/4"}, {"pattern": "0:4"}, {"pattern": "2:4", "sparsity": 0.6}, {"pattern": "-2:4"},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("config", PASSES)
def test_settings_that_mean_nothing_are_errors(config: Any, bad: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        config(**bad)


def test_settings_that_would_be_ignored_are_errors() -> None:
    with pytest.raises(InputError, match="scope"):
        MagnitudeConfig(pattern="2:4", scope="row")
    with pytest.raises(InputError, match="whole groups"):
        SparseGptConfig(pattern="2:4", block=6)


# --------------------------------------------------------------------------- inputs and scores


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_second_moments_are_of_real_tokens(family: str) -> None:
    """Row by row there is no padding: the sums must be the same."""
    model = tiny(family, spread=4.0)
    given_rows = rows_for(model, count=9)
    matrices = [m for m in encoder_matrices(model, what="a test") if m.layer == 0]
    linears = [m.linear for m in matrices]
    layer = _layers(model)[0]
    walk = Walk(model, _layers(model), batches_of(given_rows, rows=9))
    found = second_moments(walk, layer, linears)
    seen: dict[int, list[torch.Tensor]] = {i: [] for i in range(6)}
    hooks = [
        linear.register_forward_pre_hook(lambda _m, x, i=i: seen[i].append(x[0][0].detach().double()))  # type: ignore[misc]
        for i, linear in enumerate(linears)
    ]
    for row in given_rows.head(9):
        with torch.no_grad():
            model(**row)
    for hook in hooks:
        hook.remove()
    for number, moment in enumerate(found):
        x = torch.cat(seen[number])
        assert torch.allclose(moment, x.T @ x / len(x), rtol=1e-3, atol=1e-5)
    diagonals = second_moments(walk, layer, linears, full=False)
    assert all(torch.allclose(d, m.diagonal(), rtol=1e-3) for d, m in zip(diagonals, found, strict=True))


def test_a_layers_inputs_are_what_the_changed_layers_below_give() -> None:
    model = tiny(spread=4.0)
    given_rows = rows_for(model)
    plain = [groups[0][1] for groups in layer_by_layer(model, given_rows, rows=24, full=False, kind="test")]
    found = []
    for groups in layer_by_layer(model, given_rows, rows=24, full=False, kind="test"):
        found.append(groups[0][1])
        for group, _ in groups:
            for matrix in group:
                nn.init.zeros_(matrix.linear.weight)
    assert torch.allclose(found[0], plain[0])
    assert not torch.allclose(found[1], plain[1], rtol=1e-2)


def test_taylor_scores_are_what_the_loss_loses() -> None:
    """For a weight scaled by 1 - e the loss moves by e |w dL/dw|, minibatch by minibatch."""
    model = tiny(spread=4.0).double()
    given_rows = rows_for(tiny(spread=4.0), count=6)
    matrices = encoder_matrices(model, what="a test")
    scores = weight_scores(model, matrices, given_rows, rows=6, batch=3)
    step = 1e-5
    for number, place in ((0, (3, 4)), (9, (0, 1)), (23, (5, 60))):
        weight = matrices[number].linear.weight
        total = 0.0
        for inputs, labels in given_rows.batches(batch=3):
            losses = []
            for factor in (1 + step, 1 - step):
                kept = weight[place].item()
                with torch.no_grad():
                    weight[place] = kept * factor
                    losses.append(float(nn.functional.cross_entropy(model(**inputs), labels, reduction="sum")))
                    weight[place] = kept
            total += abs(losses[0] - losses[1]) / (2 * step)
        assert float(scores[number][place]) == pytest.approx(total, rel=1e-3, abs=1e-9)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("labels", [True, False])
def test_taylor_keeps_more_than_the_weights_it_would_drop(labels: bool) -> None:
    """Dropping the lowest scores hurts less than dropping the highest."""
    model = tiny(spread=4.0)
    given_rows = rows_for(model, labels=labels)
    whole = outputs(model, given_rows)
    matrices = encoder_matrices(model, what="a test")
    scores = weight_scores(model, matrices, given_rows, rows=24, batch=4)
    moved = []
    for sign in (1, -1):
        other = copy.deepcopy(model)
        masks = masks_of([sign * score for score in scores], sparsity=0.3)
        for matrix, mask in zip(encoder_matrices(other, what="a test"), masks, strict=True):
            matrix.linear.weight.data *= mask
        moved.append(float((outputs(other, given_rows) - whole).square().sum()))
    assert moved[0] < 0.2 * moved[1]


def test_wanda_keeps_small_weights_of_large_inputs() -> None:
    """A channel of the FFN that is made large, and its weights small, goes by magnitude and stays by Wanda."""
    model = tiny(spread=4.0)
    up, down = model.hf.bert.encoder.layer[0].intermediate.dense, model.hf.bert.encoder.layer[0].output.dense
    with torch.no_grad():
        up.weight[7] = 0.0
        up.bias[7] = 100.0
        down.weight[:, 7] = 0.3 * down.weight.abs().median()
    given_rows = rows_for(model)
    whole = outputs(model, given_rows)
    by_size = run_pass(copy.deepcopy(model), MagnitudeConfig(sparsity=0.5, scope="row"), given_rows)
    by_input = run_pass(copy.deepcopy(model), WandaConfig(sparsity=0.5), given_rows)
    assert not by_size.hf.bert.encoder.layer[0].output.dense.weight[:, 7].any()
    assert by_input.hf.bert.encoder.layer[0].output.dense.weight[:, 7].all()
    lost = [float((outputs(m, given_rows) - whole).square().sum()) for m in (by_size, by_input)]
    assert lost[1] < lost[0]


def _layers(model: Any) -> nn.ModuleList:
    from hasten.passes.family import adapter_of

    return adapter_of(model, what="a test").layers(model.hf)
