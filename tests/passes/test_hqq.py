"""HQQ: its rounds by their formula, and a loss that is never above that of plain rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from unit_cases import outputs, rows_for, tiny

from hasten.models import grid_store
from hasten.passes.hqq import HqqConfig, half_quadratic, quantize_hqq, shrunk
from hasten.records import InputError

NORM = 0.7


def heavy(rows: int, inputs: int, *, seed: int = 0) -> torch.Tensor:
    """Weights with tails, as HQQ expects them."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_t(3, (rows, inputs)) / 30).float()


def loss(weight: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    return (weight - found).abs().pow(NORM)


@settings(deadline=None)
@given(
    rows=st.integers(1, 5), inputs=st.integers(1, 100), bits=st.sampled_from([2, 3, 4, 8]), seed=st.integers(0, 9),
    group=st.sampled_from([None, 32, 64]),
)  # fmt: skip
def test_no_group_loses_more_than_by_rounding(rows: int, inputs: int, bits: int, seed: int, group: int | None) -> None:
    weight = heavy(rows, inputs, seed=seed)
    plain = half_quadratic(weight, bits=bits, group=group, rounds=0)
    found = half_quadratic(weight, bits=bits, group=group, rounds=20)
    size = group or inputs
    for start in range(0, inputs, size):
        own = slice(start, start + size)
        before, after = (loss(weight, w)[:, own].sum(dim=1) for w in (plain, found))
        assert bool((after <= before * 1.00001 + 1e-9).all())


@pytest.mark.parametrize(("bits", "share"), [(2, 0.97), (3, 0.97), (4, 0.98)])
def test_together_they_lose_less(bits: int, share: float) -> None:
    weight = heavy(128, 256)
    plain, found = (half_quadratic(weight, bits=bits, group=64, rounds=rounds) for rounds in (0, 20))
    assert float(loss(weight, found).sum()) < share * float(loss(weight, plain).sum())


def test_without_rounds_it_is_rounding_between_the_extremes() -> None:
    weight = heavy(3, 40)
    found = half_quadratic(weight, bits=4, group=None, rounds=0)
    low, high = weight.amin(dim=1, keepdim=True), weight.amax(dim=1, keepdim=True)
    step = ((high - low) / 15).half().float()
    wanted = ((weight - low) / step).round().clamp(0, 15) * step + low.half().float()
    assert torch.allclose(found, wanted, atol=1e-7)


def test_one_round_is_the_papers_formula() -> None:
    """With a zero point and errors in steps, group by group, in plain Python."""
    weight = heavy(1, 32, seed=4)
    w = weight[0].double().numpy()
    step = float(np.float16((w.max() - w.min()) / 3))
    best = None
    zero, beta = -w.min() / step, 10.0
    for _ in range(5):
        q = np.clip(np.rint(w / step + zero), 0, 3)
        error = (w - (q - zero) * step) / step
        sizes = np.maximum(np.abs(error), 1e-12)
        split = np.sign(error) * np.maximum(sizes - sizes ** (NORM - 1) / beta, 0)
        back = (np.float64(np.float16(-zero * step + q.min() * step)) + (q - q.min()) * step).astype(np.float32)
        total = float((np.abs(w - back) ** NORM).sum())
        if best is None or total < best[0]:
            best = (total, back)
        zero = float(np.mean(q - (w / step - split)))
        beta *= 1.01
    assert best is not None
    found = half_quadratic(weight, bits=2, group=None, rounds=4)
    assert torch.allclose(found[0], torch.from_numpy(best[1]), atol=1e-6)


def test_shrinking_solves_its_own_problem() -> None:
    """What is small goes to zero, what is large loses less the larger it is, and signs stay."""
    x = torch.linspace(-3, 3, 61)
    found = shrunk(x, beta=10.0)
    assert torch.equal(found, -found.flip(0))
    assert not found[(x.abs() < 0.1)].any()
    assert bool((found.abs() <= x.abs()).all())
    large = x[x > 1]
    assert torch.allclose(shrunk(large, beta=10.0), large - large ** (NORM - 1) / 10)
    assert torch.equal(shrunk(torch.zeros(3), beta=10.0), torch.zeros(3))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [None, 32, 128])
def test_every_grid_is_stored_as_it_is(bits: int, group: int | None) -> None:
    weight = heavy(40, 160)
    weight[3] = 0.25  # no range
    weight[4] = 0.0
    weight[5] += 0.4  # zero is far outside
    found = half_quadratic(weight, bits=bits, group=group, rounds=20)
    parts = grid_store.pack(found)
    assert parts is not None
    assert parts["layout"].tolist() == [40, 160, bits, group or 160]
    assert parts["offsets"].dtype == parts["scales"].dtype == torch.float16
    assert torch.equal(grid_store.unpack(parts), found)
    assert torch.equal(found[3], torch.full((160,), 0.25))


def test_an_offset_far_below_its_step_is_stored_too() -> None:
    """One huge weight among tiny ones: with more digits the sum of offset and steps would not be exact."""
    weight = heavy(64, 64)
    weight[:4] /= 1000
    weight[:4, 5], weight[:4, 6], weight[:4, 40] = 6.28, 2.1, 500.0
    weight[7, 32:] = 0.5 + weight[7, 32:] / 1000
    for bits in (2, 3, 4, 8):
        found = half_quadratic(weight, bits=bits, group=32, rounds=20)
        parts = grid_store.pack(found)
        assert parts is not None
        assert parts["layout"].tolist() == [64, 64, bits, 32]
        assert parts["offsets"].dtype == parts["scales"].dtype == torch.float16
        assert torch.equal(grid_store.unpack(parts), found)


@pytest.mark.parametrize("embeddings", [False, True])
def test_more_bits_lose_less(embeddings: bool) -> None:
    lost = {}
    for bits in (2, 3, 4, 8):
        model = tiny(spread=4.0)
        given = rows_for(model)
        whole = outputs(model, given)
        config: Any = HqqConfig(bits=bits, group=32, embeddings=embeddings)  # type: ignore[arg-type]
        made = quantize_hqq(model, config, given)
        lost[bits] = float((outputs(made, given) - whole).square().mean())
    assert lost[8] < lost[4] < lost[2]


@pytest.mark.parametrize("bad", [{"bits": 5}, {"group": 48}, {"rounds": -1}])
def test_settings_that_mean_nothing_are_errors(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        HqqConfig(**bad)
