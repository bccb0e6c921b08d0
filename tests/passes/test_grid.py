"""Grids: half a step at most, ranges that are worth giving up, and files of as many bits as were asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from unit_cases import outputs, rows_for

from hasten.models import grid_store
from hasten.models.inspect import OWN_WEIGHTS
from hasten.models.reshape import open_model, save_model
from hasten.passes import run_pass
from hasten.passes.awq import AwqConfig
from hasten.passes.gptq import GptqConfig
from hasten.passes.grid import GridSpec, check_grid, clipped, fitted, grouped, output_error, short
from hasten.passes.hqq import HqqConfig
from hasten.passes.llm_int8 import LlmInt8Config
from hasten.passes.matrices import encoder_matrices
from hasten.passes.rtn import RtnConfig
from hasten.records import InputError
from hasten.tasks.wrappers import LogitsWrapper


def weight_of(rows: int, inputs: int, *, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, inputs, generator=generator) * torch.rand(rows, 1, generator=generator) / 10


def moment_of(inputs: int, *, tokens: int = 300, seed: int = 0) -> torch.Tensor:
    """Second moment of inputs of very different sizes that have something to do with each other."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, inputs, generator=generator, dtype=torch.float64)
    x = (x + 0.5 * x.roll(1, dims=1)) * torch.logspace(-1, 1, inputs, dtype=torch.float64)
    return x.T @ x / tokens


SPECS = st.builds(GridSpec, st.integers(2, 8), st.sampled_from([None, 32, 64]), st.booleans())


@settings(deadline=None)
@given(rows=st.integers(1, 5), inputs=st.integers(1, 80), spec=SPECS, seed=st.integers(0, 5))
def test_no_weight_moves_by_more_than_half_a_step(rows: int, inputs: int, spec: GridSpec, seed: int) -> None:
    weight = weight_of(rows, inputs, seed=seed)
    grid = fitted(weight, spec)
    found = grid.nearest(weight)
    steps = grid.steps.repeat_interleave(spec.group or inputs, dim=1)[:, :inputs]
    # A step's last digit may cut a little off the ends, and a rounded zero point half a step.
    allowed = steps * (0.5 if spec.symmetric else 1.0) + weight.abs().max() * 2**-10
    assert bool(((found - weight).abs() <= allowed).all())
    assert torch.allclose(grid.nearest(found), found), "on the grid it stays"
    for number in range(grid.steps.shape[1]):
        column = min(number * (spec.group or inputs) + 1, inputs - 1)
        if column // (spec.group or inputs) == number:
            assert torch.equal(grid.column(weight[:, column], number), found[:, column])


@settings(deadline=None)
@given(spec=SPECS, exponent=st.integers(-60, 10))
def test_every_grid_is_stored_as_it_is(spec: GridSpec, exponent: int) -> None:
    weight = weight_of(30, 96) * 2.0**exponent
    found = fitted(weight, spec).nearest(weight)
    parts = grid_store.pack(found)
    assert parts is not None
    assert torch.equal(grid_store.unpack(parts), found)
    assert parts["layout"][2] <= spec.bits
    assert parts["scales"].dtype == (torch.float16 if exponent >= 0 else parts["scales"].dtype)


def test_symmetric_is_the_textbook_formula() -> None:
    weight = torch.tensor([[0.7, -0.32, 0.04, -0.7, 0.0, 0.26]])
    step = torch.tensor(0.1).half().float()
    wanted = torch.tensor([[7.0, -3.0, 0.0, -7.0, 0.0, 3.0]]) * step
    assert torch.equal(fitted(weight, GridSpec(4)).nearest(weight), wanted)


def test_zero_points_use_the_whole_range_and_keep_zero() -> None:
    weight = torch.tensor([[0.0, 0.1, 0.2, 1.5], [-0.4, 0.0, 0.3, 1.1], [2.0, 2.5, 3.0, 3.0]])
    grid = fitted(weight, GridSpec(4, symmetric=False))
    assert torch.allclose(grid.steps[:, 0], torch.tensor([0.1, 0.1, 0.2]), rtol=1e-3)
    assert grid.zeros is not None
    assert grid.zeros[:, 0].tolist() == [0.0, 4.0, 0.0]
    found = grid.nearest(weight)
    assert torch.allclose(found, weight, atol=0.1)
    assert torch.equal(found == 0, weight == 0)


@given(st.floats(-(2.0**100), 2.0**100, width=32))
def test_short_numbers_have_eleven_bits(number: float) -> None:
    found = float(short(torch.tensor([number])))
    assert found == pytest.approx(number, rel=2**-11, abs=2**-120)
    mantissa = abs(torch.frexp(torch.tensor(found, dtype=torch.float64)).mantissa.item()) * 2**11
    assert mantissa == round(mantissa) or abs(number) < 2**-120


@pytest.mark.parametrize("group", [None, 32, 64])
@pytest.mark.parametrize("symmetric", [True, False])
def test_giving_up_range_loses_less(group: int | None, symmetric: bool) -> None:
    weight, moment = weight_of(24, 96), moment_of(96)
    spec = GridSpec(3, group, symmetric)
    plain = fitted(weight, spec).nearest(weight)
    by_weights, by_outputs = clipped(weight, spec).nearest(weight), clipped(weight, spec, moment=moment).nearest(weight)

    def errors(found: torch.Tensor) -> torch.Tensor:
        return grouped(found - weight, group).square().sum(dim=-1)

    assert bool((errors(by_weights) <= errors(plain) + 1e-9).all()), "group by group"
    assert float(errors(by_weights).sum()) < 0.95 * float(errors(plain).sum())
    assert output_error(weight, by_outputs, moment) < output_error(weight, by_weights, moment)


def test_a_groups_error_is_that_of_its_own_inputs() -> None:
    """Against the outputs themselves, for every share by itself."""
    weight, spec = weight_of(1, 40), GridSpec(2, 32)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(100, 40, generator=generator, dtype=torch.float64)
    found = clipped(weight, spec, moment=x.T @ x / 100)
    for number, columns in enumerate((slice(0, 32), slice(32, 40))):
        lost = {}
        for share in [1 - k / 20 for k in range(11)]:
            grid = fitted(weight, spec, share=share)
            moved = (weight - grid.nearest(weight))[:, columns].double()
            lost[share] = (float((x[:, columns] @ moved.T).square().sum()), grid.steps[0, number])
        assert float(found.steps[0, number]) == float(min(lost.values(), key=lambda pair: pair[0])[1])


def test_an_outputs_error_is_what_it_says() -> None:
    weight, other = weight_of(5, 12), weight_of(5, 12, seed=1)
    x = torch.randn(60, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = float((x @ (weight - other).double().T).square().sum() / 60)
    assert output_error(weight, other, x.T @ x / 60) == pytest.approx(wanted)


@pytest.mark.parametrize("bad", [GridSpec(1, 32), GridSpec(9, 32), GridSpec(4, 48), GridSpec(4, 0)])
def test_settings_that_mean_nothing_are_errors(bad: GridSpec) -> None:
    with pytest.raises(InputError):
        check_grid(bad, bits=range(2, 9))


# --------------------------------------------------------------------------- what a folder holds

FOLDERS: list[tuple[Any, float]] = [
    (RtnConfig(group=32), 4 + 16 / 32),
    (RtnConfig(bits=3, group=32, symmetric=False, clip=True), 3 + 19 / 32),
    (RtnConfig(bits=8, group=None), 8 + 16 / 96),
    (HqqConfig(group=32), 4 + 32 / 32),
    (HqqConfig(bits=2, group=32), 2 + 32 / 32),
    (AwqConfig(group=32), 4 + 16 / 32),
    (GptqConfig(group=32), 4 + 16 / 32),
    (GptqConfig(bits=3, group=32, symmetric=False, act_order=True), 3 + 19 / 32),
    (GptqConfig(bits=2, group=None), 2 + 16 / 96),
    (LlmInt8Config(), 8 + 16 / 96),
    (LlmInt8Config(threshold=3.5), 8.5),
]


@pytest.mark.parametrize(("config", "bits"), FOLDERS, ids=lambda x: getattr(x, "label", None))
def test_the_file_has_the_bits_and_the_model_is_the_same(config: Any, bits: float, tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = BertConfig(vocab_size=60, hidden_size=96, num_hidden_layers=4, num_attention_heads=4, intermediate_size=384)
    torch.manual_seed(0)
    model = LogitsWrapper(BertForSequenceClassification(sizes)).eval()
    rows = rows_for(model)
    save_model(model.hf, tmp_path / "dense")
    run_pass(model, config, rows)
    save_model(model.hf, tmp_path / "rounded")
    stored = load_file(tmp_path / "rounded" / OWN_WEIGHTS)
    assert sum(key.startswith("hasten.grid.codes:") for key in stored) == 24
    weights = sum(m.linear.weight.numel() for m in encoder_matrices(model, what="a test"))
    names = ("dense/model.safetensors", f"rounded/{OWN_WEIGHTS}")
    dense, rounded = ((tmp_path / name).stat().st_size for name in names)
    assert bits - 0.1 < 8 * (rounded - (dense - 4 * weights)) / weights < bits + 0.3
    again = open_model(type(model.hf), tmp_path / "rounded", attention="sdpa", dtype=torch.float32)
    assert torch.equal(outputs(LogitsWrapper(again), rows), outputs(model, rows))
    both = (encoder_matrices(one, what="a test") for one in (model, LogitsWrapper(again)))
    assert all(torch.equal(a.linear.weight, b.linear.weight) for a, b in zip(*both, strict=True))
