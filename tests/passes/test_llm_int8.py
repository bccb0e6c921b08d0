"""LLM.int8(): channels with outliers stay what they are, and the others do not pay for them."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from unit_cases import rows_for, tiny

from hasten.passes.calibration import Progress
from hasten.passes.family import adapter_of
from hasten.passes.grid import output_error
from hasten.passes.llm_int8 import LlmInt8Config, in_int8, quantize_llm_int8
from hasten.passes.matrices import encoder_matrices
from hasten.passes.rtn import RtnConfig, quantize_rtn
from hasten.passes.smooth_quant import input_maxima
from hasten.passes.units import batches_of
from hasten.records import InputError, Rejected


def test_rows_are_absmax_int8_and_outliers_fp16() -> None:
    weight = torch.randn(20, 48, generator=torch.Generator().manual_seed(0))
    outliers = torch.zeros(48, dtype=torch.bool)
    outliers[[3, 30]] = True
    weight[:, 3] *= 100  # does not widen the range of the others
    found = in_int8(weight, outliers)
    assert torch.equal(found[:, outliers], weight[:, outliers].half().float())
    rest = weight[:, ~outliers]
    steps = (rest.abs().amax(dim=1, keepdim=True) / 127).half().float()
    codes = found[:, ~outliers] / steps
    assert torch.equal(codes, codes.round())
    assert float(codes.abs().max()) == 127
    assert bool(((found[:, ~outliers] - rest).abs() <= 0.5 * steps + rest.abs() * 2**-10).all())


def test_codes_are_those_of_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(20, 48, generator=torch.Generator().manual_seed(0)).half().float()
    codes, largest, _ = functional.int8_vectorwise_quant(weight.half())
    found = in_int8(weight, torch.zeros(48, dtype=torch.bool))
    ours = found / (found.abs().amax(dim=1, keepdim=True) / 127)
    assert torch.allclose(largest / 127, found.abs().amax(dim=1) / 127, rtol=2**-10)
    # Where a weight is half way between two codes, the last digit of the step decides.
    assert int((codes.float() - ours).abs().round().max()) <= 1
    assert float((codes.float() != ours.round()).float().mean()) < 0.02


def planted(model: Any) -> Any:
    """One neuron of every layer is 80 times larger, and the next matrix takes it back."""
    with torch.no_grad():
        for layer in adapter_of(model, what="a test").layers(model.hf):
            layer.output.dense.weight[:, 5] /= 80
            layer.output.dense.weight[:, 6] *= 0.02
            layer.intermediate.dense.weight[5] *= 80
            layer.intermediate.dense.bias[5] = 40.0
    return model


def test_outliers_are_found_where_they_are_and_told() -> None:
    model = planted(tiny(spread=4.0))
    heard: list[Progress] = []
    given = replace(rows_for(model), listen=heard.append)
    before = [m.linear.weight.clone() for m in encoder_matrices(model, what="a test")]
    linears = [m.linear for m in encoder_matrices(model, what="a test")]
    largest = input_maxima(model, linears, batches_of(given, rows=256))
    quantize_llm_int8(model, LlmInt8Config(), given)
    share = []
    for linear, weight, inputs in zip(linears, before, largest, strict=True):
        assert torch.equal(linear.weight, in_int8(weight, inputs >= 6.0))
        share.append(inputs >= 6.0)
    assert all(bool(away[5]) for away in share[5::6])
    assert f"{100 * float(torch.cat(share).double().mean()):.2f}%" in heard[-1].what


def test_loud_channels_and_the_others_lose_less_than_by_int8_rows() -> None:
    """Large weights on large inputs: as int8 rows they take the range that the others need."""
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    x = torch.randn(500, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    outliers = torch.zeros(64, dtype=torch.bool)
    outliers[[3, 30]] = True
    weight[:, outliers] *= 20
    x[:, outliers] *= 10
    plain, found = (in_int8(weight, away) for away in (torch.zeros_like(outliers), outliers))
    assert output_error(weight, found, x.T @ x / 500) < 0.05 * output_error(weight, plain, x.T @ x / 500)


def test_without_outliers_it_is_int8_rows() -> None:
    model = tiny()
    given = rows_for(model)
    wanted = quantize_rtn(copy.deepcopy(model), RtnConfig(bits=8, group=None), given).state_dict()
    found = quantize_llm_int8(model, LlmInt8Config(threshold=1e6), given).state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_inputs_that_are_no_numbers_are_refused() -> None:
    model = tiny()
    with torch.no_grad():
        model.hf.bert.embeddings.word_embeddings.weight.fill_(torch.inf)
    given = rows_for(tiny())
    with pytest.raises(Rejected, match="overflows"):
        quantize_llm_int8(model, LlmInt8Config(), given)


@pytest.mark.parametrize("bad", [{"threshold": 0.0}, {"threshold": float("nan")}, {"rows": 0}])
def test_settings_that_mean_nothing_are_errors(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        LlmInt8Config(**bad)
