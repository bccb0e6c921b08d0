"""SparseGPT against optimal brain surgery done the slow way."""

from __future__ import annotations

import pytest
import torch
from unit_cases import outputs, rows_for, tiny

from hasten.passes import run_pass
from hasten.passes.magnitude_weights import MagnitudeConfig
from hasten.passes.sparsegpt import SparseGptConfig, without
from hasten.passes.sparsity import masks_of, pattern_of
from hasten.passes.surgeon import inverse_factor
from hasten.records import Rejected

DAMP = 0.01


def correlated(inputs: int, *, tokens: int = 500, seed: int = 0) -> torch.Tensor:
    """Second moment of inputs of which neighbours say much the same."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, inputs, generator=generator, dtype=torch.float64).cumsum(dim=1)
    return x.T @ x / tokens


def factor_of(moment: torch.Tensor) -> torch.Tensor:
    return inverse_factor(moment, damp=DAMP, kind="sparsegpt")


def weight_of(rows: int, inputs: int) -> torch.Tensor:
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def hessian(moment: torch.Tensor) -> torch.Tensor:
    h = 2 * moment
    return h + DAMP * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype)


def slow(weight: torch.Tensor, moment: torch.Tensor, *, sparsity: float, pattern: str | None) -> torch.Tensor:
    """One row, the inverse taken anew for every column: Frantar and Alistarh's section 3 without its speed."""
    h, w = hessian(moment), weight.clone()
    width = len(w)
    group = width if pattern is None else pattern_of(pattern)[1]
    gone: set[int] = set()
    for j in range(width):
        if j % group == 0:
            places = range(j, min(j + group, width))
            scores = {q: float(w[q] ** 2 / torch.linalg.inv(h[q:, q:])[0, 0]) for q in places}
            count = round(sparsity * len(scores)) if pattern is None else group - pattern_of(pattern)[0]
            gone |= set(sorted(scores, key=lambda q: scores[q])[:count])
        if j in gone:
            inverse = torch.linalg.inv(h[j:, j:])
            w[j:] -= w[j] / inverse[0, 0] * inverse[:, 0]
            w[j] = 0.0
    return w


@pytest.mark.parametrize(("sparsity", "pattern"), [(0.5, None), (0.25, None), (0.5, "2:4"), (0.75, "1:4")])
def test_one_row_equals_brute_force(sparsity: float, pattern: str | None) -> None:
    moment, weight = correlated(16), weight_of(1, 16)
    found = without(weight, factor_of(moment), sparsity=sparsity, pattern=pattern, block=16)
    assert torch.allclose(found[0], slow(weight[0], moment, sparsity=sparsity, pattern=pattern), atol=1e-9)


@pytest.mark.parametrize("block", [4, 8, 12, 64])
def test_rows_and_blocks_do_not_mix(block: int) -> None:
    """With a pattern a row's zeros are its own, so blocks change nothing but the order of the sums."""
    moment, weight = correlated(32), weight_of(5, 32)
    factor = factor_of(moment)
    found = without(weight, factor, sparsity=0.5, pattern="2:4", block=block)
    for row in range(5):
        assert torch.allclose(found[row], slow(weight[row], moment, sparsity=0.5, pattern="2:4"), atol=1e-9)


def test_zeros_in_front_are_made_up_for_as_well_as_can_be() -> None:
    """Where all that goes is on the left, what stays is the least-squares solution on the columns that stay."""
    moment, weight = correlated(12), weight_of(3, 12)
    weight[:, :6] *= 1e-3  # so these go
    found = without(weight, factor_of(moment), sparsity=0.5, pattern=None, block=12)
    assert not found[:, :6].any()
    h = hessian(moment)
    best = torch.linalg.solve(h[6:, 6:], (weight @ h)[:, 6:].T).T
    assert torch.allclose(found[:, 6:], best, atol=1e-9)


@pytest.mark.parametrize(("sparsity", "pattern"), [(0.3, None), (0.5, None), (0.8, None), (0.5, "2:4"), (0.5, "4:8")])
@pytest.mark.parametrize("seed", range(3))
def test_the_outputs_move_less_than_with_the_smallest_weights_gone(
    sparsity: float, pattern: str | None, seed: int
) -> None:
    moment, weight = correlated(48, seed=seed), weight_of(20, 48)
    found = without(weight, factor_of(moment), sparsity=sparsity, pattern=pattern, block=16)
    mask = masks_of([weight.abs()], sparsity=sparsity, pattern=pattern, scope="global" if pattern else "matrix")[0]

    def error(other: torch.Tensor) -> float:
        return float(((weight - other) @ moment * (weight - other)).sum())

    assert int((found == 0).sum()) == pytest.approx(int((~mask).sum()), abs=2)
    assert error(found) < 0.3 * error(weight * mask)


def test_inputs_that_say_nothing_leave_the_choice_to_size() -> None:
    weight = weight_of(4, 8)
    found = without(weight, factor_of(torch.zeros(8, 8)), sparsity=0.5, pattern=None, block=8)
    assert torch.allclose(found, weight * masks_of([weight.abs()], sparsity=0.5)[0])


def test_inputs_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(Rejected, match="overflows"):
        factor_of(torch.full((4, 4), float("nan")))


@pytest.mark.parametrize("pattern", [None, "2:4"])
def test_a_model_thinned_so_stays_closer(pattern: str | None) -> None:
    lost = {}
    for config in (
        MagnitudeConfig(sparsity=0.5, pattern=pattern),
        SparseGptConfig(sparsity=0.5, pattern=pattern, block=16),
    ):
        model = tiny(spread=4.0)
        given = rows_for(model, count=200)
        whole = outputs(model, given)
        lost[config.kind] = float((outputs(run_pass(model, config, given), given) - whole).square().mean())
    assert lost["sparsegpt"] < 0.5 * lost["magnitude"]
