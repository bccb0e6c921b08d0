"""The mask search against brute force, and its budget against every input."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.passes.unit_budget import search
from hasten.passes.units import Costs, PerUnit
from hasten.records import Rejected


def scores(heads: list[list[float]], neurons: list[list[float]]) -> PerUnit:
    return PerUnit([torch.tensor(h) for h in heads], [torch.tensor(n) for n in neurons])


def kept_score(masks: PerUnit, given_scores: PerUnit) -> float:
    return sum(float((m * s).sum()) for m, s in zip(masks.both(), given_scores.both(), strict=True))


def brute_force(given_scores: PerUnit, costs: Costs, budget: float) -> float:
    """The best total of all subsets with a head and a neuron in every layer."""
    units = [(f"h{layer}", float(s), costs.head) for layer, h in enumerate(given_scores.heads) for s in h]
    units += [(f"n{layer}", float(s), costs.neuron) for layer, n in enumerate(given_scores.neurons) for s in n]
    places = {place for place, _, _ in units}
    best = -1.0
    for size in range(len(units) + 1):
        for chosen in combinations(units, size):
            if sum(cost for _, _, cost in chosen) <= budget and {place for place, _, _ in chosen} == places:
                best = max(best, sum(score for _, score, _ in chosen))
    return best


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.45, 0.95))
def test_without_rounding_it_is_the_best_of_all_subsets(seed: int, keep: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    found = PerUnit(
        [torch.rand(2, generator=generator) for _ in range(2)], [torch.rand(4, generator=generator) for _ in range(2)]
    )
    costs = Costs(head=5.0, neuron=2.0)
    budget = keep * 36.0
    masks = search(found, costs, budget=budget, round_to=1, kind="test")
    assert costs.of(masks) <= budget
    assert kept_score(masks, found) == pytest.approx(brute_force(found, costs, budget), rel=1e-6)


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 2**31),
    st.floats(0.4, 0.99),
    st.integers(1, 16),
    st.lists(st.integers(1, 70), min_size=1, max_size=4),
)
def test_the_budget_holds_and_widths_are_multiples(seed: int, keep: float, round_to: int, sizes: list[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    found = PerUnit(
        [torch.rand(4, generator=generator) for _ in sizes], [torch.rand(size, generator=generator) for size in sizes]
    )
    costs = Costs(head=40.0, neuron=1.0)
    budget = keep * (160.0 * len(sizes) + sum(sizes))
    least = sum(40 + min(round_to, size) for size in sizes)
    if least > budget:
        with pytest.raises(Rejected, match="already cost"):
            search(found, costs, budget=budget, round_to=round_to, kind="test")
        return
    masks = search(found, costs, budget=budget, round_to=round_to, kind="test")
    assert costs.of(masks) <= budget * (1 + 1e-6)
    for mask, size in zip(masks.neurons, sizes, strict=True):
        width = int(mask.sum())
        assert width == size or (width % round_to == 0 and width >= round_to)
    assert all(mask.sum() >= 1 for mask in masks.heads)


def test_a_layers_best_units_stay() -> None:
    found = scores([[0.1, 0.9], [0.4, 0.2]], [[1.0, 9.0, 8.0, 2.0], [0.1, 0.2, 0.3, 0.4]])
    masks = search(found, Costs(1.0, 1.0), budget=8.0, round_to=2, kind="test")
    assert [m.tolist() for m in masks.neurons] == [[1, 1, 1, 1], [0, 0, 1, 1]]
    assert [m.tolist() for m in masks.heads] == [[0, 1], [1, 0]]


def test_a_fixed_number_of_heads_and_decided_layers() -> None:
    found = scores([[], [0.4, 0.2, 0.3]], [[], [0.1, 0.2, 0.3, 0.4]])
    masks = search(found, Costs(1.0, 1.0), budget=4.0, round_to=1, kind="test", heads=2)
    assert [m.tolist() for m in masks.heads] == [[], [1, 0, 1]]
    assert [m.tolist() for m in masks.neurons] == [[], [0, 0, 1, 1]]


def test_scores_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(Rejected, match="not a number"):
        search(scores([[float("nan")]], [[1.0]]), Costs(1.0, 1.0), budget=2.0, round_to=1, kind="test")
