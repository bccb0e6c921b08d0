"""Round to nearest: the formula, which weights it touches, and the runtime that finds the same grid again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from unit_cases import check_int4_grid, outputs, rows_for, tiny

from hasten.passes.grid import GridSpec
from hasten.passes.rtn import RtnConfig, quantize_rtn, rounded
from hasten.passes.tables import plain_weights
from hasten.records import InputError


def by_hand(weight: torch.Tensor, *, bits: int, group: int, symmetric: bool) -> torch.Tensor:
    """Row by row and group by group, in numpy's float64."""
    found = np.zeros(weight.shape)
    for row, values in enumerate(weight.double().numpy()):
        for start in range(0, len(values), group):
            part = values[start : start + group]
            low, high = (-abs(part).max(), abs(part).max()) if symmetric else (min(part.min(), 0), max(part.max(), 0))
            levels = 2**bits - (2 if symmetric else 1)
            step = np.float64(np.float16((high - low) / levels))
            zero = levels // 2 if symmetric else np.rint(-low / step)
            found[row, start : start + group] = (np.clip(np.rint(part / step) + zero, 0, levels) - zero) * step
    return torch.from_numpy(found).float()


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("symmetric", [True, False])
def test_it_is_the_formula(bits: int, group: int, symmetric: bool) -> None:
    weight = torch.randn(7, 150, generator=torch.Generator().manual_seed(0)) / 20
    found = rounded(weight, GridSpec(bits, group, symmetric))
    assert torch.allclose(found, by_hand(weight, bits=bits, group=group, symmetric=symmetric), atol=1e-7)


@pytest.mark.parametrize("embeddings", [False, True])
@pytest.mark.parametrize("family", ["bert", "distilbert", "electra"])
def test_only_the_named_weights_change(family: str, embeddings: bool) -> None:
    model = tiny(family, spread=4.0)
    before = {name: p.clone() for name, p in model.named_parameters()}
    quantize_rtn(model, RtnConfig(group=32, embeddings=embeddings), rows_for(model))
    chosen = {id(weight) for weight in plain_weights(model, embeddings=embeddings, what="a test")}
    assert len(chosen) == 24 + len([n for n in before if n.endswith("_embeddings.weight")]) * embeddings
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) != (id(p) in chosen), name
        if id(p) in chosen:
            assert torch.equal(p, rounded(before[name], GridSpec(4, 32)))


def test_more_bits_finer_groups_and_searched_ranges_lose_less() -> None:
    def lost(**settings: Any) -> float:
        model = tiny(spread=4.0)
        given = rows_for(model)
        whole = outputs(model, given)
        return float((outputs(quantize_rtn(model, RtnConfig(**settings), given), given) - whole).square().mean())

    assert lost(bits=8) < lost(bits=6) < lost(bits=4) < lost(bits=2)
    assert lost(bits=4, group=32) < lost(bits=4, group=None)
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    for symmetric in (True, False):
        plain, searched = (rounded(weight, GridSpec(2, 64, symmetric), clip=clip) for clip in (False, True))
        assert float((searched - weight).square().mean()) < 0.9 * float((plain - weight).square().mean())


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_an_int4_runtime_finds_the_same_weights(clip: bool, seed: int) -> None:
    """It takes its steps from the largest weight of a group, which is at the end of its range."""
    model = tiny(seed=seed, spread=4.0)
    quantize_rtn(model, RtnConfig(group=32, clip=clip), rows_for(model))
    check_int4_grid(model, group=32)


@pytest.mark.parametrize("bad", [{"bits": 1}, {"bits": 9}, {"group": 48}])
def test_settings_that_mean_nothing_are_errors(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        RtnConfig(**bad)
