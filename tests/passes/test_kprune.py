"""K-prune: what its scores are made of, its budget, and that mending beats not mending."""

from __future__ import annotations

import copy

import pytest
import torch
from unit_cases import counts, macs, outputs, rows_for, tiny, units_of

from hasten.passes.calibration import Progress
from hasten.passes.kprune import (
    KPruneConfig,
    knowledge,
    output_knowledge,
    prune_kprune,
    undecided,
    unit_energy,
)
from hasten.passes.magnitude import MagnitudeUnitsConfig, prune_magnitude_units
from hasten.passes.units import PerUnit
from hasten.records import InputError


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_directions_have_the_curvature_of_the_kl(temperature: float) -> None:
    """Against the Hessian of KL(p || softmax(z / T)) at z, by autograd."""
    logits = torch.tensor([1.0, -0.5, 0.3, 2.0])
    fixed = (logits / temperature).softmax(dim=0)

    def kl(z: torch.Tensor) -> torch.Tensor:
        return (fixed * (fixed.log() - (z / temperature).log_softmax(dim=0))).sum()

    hessian = torch.autograd.functional.hessian(kl, logits)
    rows = logits.expand(200_000, 4).clone().requires_grad_(True)
    loss = output_knowledge("logits", temperature=temperature, seed=0)
    (found,) = torch.autograd.grad(loss(rows), rows)
    assert torch.allclose(found.T @ found / len(rows), hessian, atol=3e-3)


def test_directions_of_embeddings_are_the_squared_error() -> None:
    rows = torch.zeros(200_000, 3, requires_grad=True)
    (found,) = torch.autograd.grad(output_knowledge("vectors", temperature=2.0, seed=0)(rows), rows)
    assert torch.allclose(found.T @ found / len(rows), torch.eye(3), atol=2e-2)


@pytest.mark.parametrize("width", [1, 3])
def test_energy_is_the_norm_of_a_units_own_output(width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(11, 4 * width, generator=generator), torch.randn(5, 4 * width, generator=generator)
    found = unit_energy(x, weight, width=width)
    for unit in range(4):
        columns = slice(unit * width, unit * width + width)
        assert float(found[unit]) == pytest.approx(
            float((x[:, columns] @ weight[:, columns].T).square().sum()), rel=1e-4
        )


def test_shares_of_knowledge_add_up() -> None:
    model = tiny(spread=4.0)
    scores = knowledge(units_of(model), KPruneConfig(representation=0.25), rows_for(model))
    assert sum(float(score.sum()) for score in scores.both()) == pytest.approx(1.25, rel=1e-4)
    assert all((score >= 0).all() for score in scores.both())


def test_decided_sublayers_are_out() -> None:
    scores = PerUnit([torch.ones(2)] * 3, [torch.ones(4)] * 3)
    sizes = [[len(s) for s in undecided(scores, step).both()] for step in (0, 1, 2, 5)]
    assert sizes == [[2, 2, 2, 4, 4, 4], [0, 2, 2, 4, 4, 4], [0, 2, 2, 0, 4, 4], [0, 0, 0, 0, 0, 4]]


@pytest.mark.parametrize("keep", [0.35, 0.6, 0.9])
@pytest.mark.parametrize("labels", [True, False])
def test_the_budget_holds_over_all_steps(keep: float, labels: bool) -> None:
    model = tiny(spread=4.0)
    given = rows_for(model, labels=labels)
    before = macs(model, given)
    made = prune_kprune(model, KPruneConfig(keep=keep, round_to=8), given)
    assert 0.8 * keep * before < macs(made, given) <= keep * before * (1 + 1e-6)
    assert all(width % 8 == 0 for width in counts(made)[1])


def test_mending_beats_cutting_alone() -> None:
    dense = tiny(spread=4.0)
    given = rows_for(dense, count=200)
    unseen = rows_for(dense, count=60, seed=5)
    goal = outputs(dense, unseen)
    cut = prune_magnitude_units(copy.deepcopy(dense), MagnitudeUnitsConfig(keep=0.6, round_to=8), given)
    mended = prune_kprune(copy.deepcopy(dense), KPruneConfig(keep=0.6, round_to=8), given)
    errors = [float((outputs(made, unseen) - goal).square().mean()) for made in (cut, mended)]
    assert errors[1] < 0.5 * errors[0]


def test_it_says_how_far_it_is() -> None:
    model = tiny()
    heard: list[Progress] = []
    given = rows_for(model)
    given = type(given)(given.rows, targets=given.targets, listen=heard.append)
    prune_kprune(model, KPruneConfig(keep=0.6, round_to=8), given)
    assert [progress.done for progress in heard] == list(range(1, 9))
    assert {progress.total for progress in heard} == {8}


@pytest.mark.parametrize("bad", [{"representation": -1.0}, {"temperature": 0.0}, {"damp": 0.0}, {"keep": 1.5}])
def test_settings_that_mean_nothing_are_errors(bad: dict[str, float]) -> None:
    with pytest.raises(InputError):
        KPruneConfig(**bad)  # type: ignore[arg-type]
