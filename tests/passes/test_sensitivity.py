"""Which parts stay fp32: a planted culprit is found, and the integer program agrees with trying everything."""

from __future__ import annotations

import copy
import json
from functools import partial
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from unit_cases import outputs, rows_for, tiny

from hasten.models.precision import KEEP
from hasten.models.reshape import open_model, save_model
from hasten.passes.calibration import Calibration
from hasten.passes.fake_quant import fake_quantized
from hasten.passes.low_rank import LowRankConfig, factorise
from hasten.passes.sensitivity import (
    PrecisionConfig,
    Trial,
    choose_precision,
    divergence,
    even_batches,
    least_loss,
    parts_of,
)
from hasten.records import InputError, Rejected

CULPRIT = "layer 2 down"


def spoilt(*, spread: float = 8.0) -> Any:
    """A model in which one part suffers in int8: one of its inputs is huge, and its weights for it are tiny."""
    model = tiny(spread=spread)
    layer = model.hf.bert.encoder.layer[2]
    with torch.no_grad():
        layer.intermediate.dense.bias[3] = 3000.0
        layer.output.dense.weight[:, 3] = 1e-6
    return model


def trial_of(model: Any, given: Calibration) -> Trial:
    return Trial(model, given, rows=24, numbers=partial(fake_quantized, per="tensor"), what="a test")


def test_parts_are_attention_up_and_down_of_every_layer() -> None:
    parts = parts_of(tiny())
    assert [part.name for part in parts[:4]] == ["layer 0 attention", "layer 0 up", "layer 0 down", "layer 1 attention"]
    assert [len(part.matrices) for part in parts] == [4, 1, 1] * 4


def test_the_list_keeps_the_culprit_and_holds_the_bound() -> None:
    model = spoilt()
    given = rows_for(model)
    before, whole = copy.deepcopy(model.state_dict()), outputs(model, given)
    trial = trial_of(model, given)
    alone = trial.sensitivities()
    worst = max(range(12), key=lambda i: alone[i])
    assert trial.parts[worst].name == CULPRIT
    everything, others = trial.loss(range(12)), trial.loss([i for i in range(12) if i != worst])
    assert others < everything / 5
    choose_precision(model, PrecisionConfig(bound=(others + everything) / 2), given)
    assert getattr(model.hf.config, KEEP) == ["bert.encoder.layer.2.output.dense"]
    assert torch.equal(outputs(model, given), whole)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    choose_precision(model, PrecisionConfig(bound=2 * everything), given)
    assert getattr(model.hf.config, KEEP) == []


def test_the_choice_lies_in_the_folder(tmp_path: Path) -> None:
    model = spoilt()
    given = rows_for(model)
    everything = trial_of(model, given).loss(range(12))
    choose_precision(model, PrecisionConfig(bound=everything / 2), given)
    save_model(model.hf, tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())[KEEP]
    again = open_model(type(model.hf), tmp_path, attention="sdpa", dtype=torch.float32)
    assert getattr(again.config, KEEP) == stored
    assert stored
    assert all(isinstance(again.get_submodule(name), torch.nn.Linear) for name in stored)


def test_a_bound_that_no_part_keeps_is_refused() -> None:
    model = tiny(spread=8.0)
    with pytest.raises(Rejected, match="alone loses"):
        choose_precision(model, PrecisionConfig(bound=1e-30), rows_for(model))


@settings(deadline=None, max_examples=40)
@drawn(
    losses=st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=7),
    seed=st.integers(0, 99), share=st.floats(0.0, 1.2), scale=st.sampled_from([1.0, 1e-9]),
)  # fmt: skip
def test_the_integer_program_agrees_with_trying_everything(
    losses: list[float], seed: int, share: float, scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    savings = torch.rand(len(losses), generator=generator).sub(0.2).tolist()  # some parts get slower in int8
    losses = [loss * scale for loss in losses]
    need = share * sum(s for s in savings if s > 0)
    subsets = chain.from_iterable(combinations(range(len(losses)), n) for n in range(len(losses) + 1))
    # A hair of room: the solver's feasibility has a tolerance of its own.
    fitting = {s: sum(losses[i] for i in s) for s in subsets if sum(savings[i] for i in s) >= need - 1e-6}
    strict = {s: loss for s, loss in fitting.items() if sum(savings[i] for i in s) >= need + 1e-6}
    found = least_loss(losses, savings, at_least=need)
    if found is None:
        assert not strict
    else:
        assert tuple(found) in fitting
        assert fitting[tuple(found)] <= min(strict.values(), default=float("inf")) + 1e-6 * scale


def test_the_program_saves_what_it_must_at_the_least_loss() -> None:
    model = spoilt()
    given = rows_for(model)
    config = PrecisionConfig(bound=10.0, save_ms=3.0, savings_ms=(0.4, 0.3, 0.3))
    choose_precision(model, config, given)
    kept = getattr(model.hf.config, KEEP)
    assert "bert.encoder.layer.2.output.dense" in kept
    int8 = [part.name for part in parts_of(model) if part.matrices[0].name not in kept]
    assert sum(0.4 if "attention" in name else 0.3 for name in int8) >= 3.0 - 1e-9


def test_the_program_is_verified_jointly() -> None:
    model = spoilt()
    given = rows_for(model)
    everything = trial_of(model, given).loss(range(12))
    config = PrecisionConfig(bound=everything / 2, save_ms=4.0, savings_ms=(0.4, 0.3, 0.3))
    with pytest.raises(Rejected, match="together"):
        choose_precision(model, config, given)
    assert not hasattr(model.hf.config, KEEP)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"save_ms": 99.0, "savings_ms": (1.0, 1.0, 1.0)}, "save 12 ms"),
        ({"save_ms": 1.0, "savings_ms": (1.0,) * 9}, "9 savings_ms"),
    ],
)
def test_savings_that_cannot_be_had_are_refused(settings_: dict[str, Any], message: str) -> None:
    model = tiny()
    with pytest.raises(Rejected, match=message):
        choose_precision(model, PrecisionConfig(**settings_), rows_for(model))


def test_divergence_is_the_kl_of_probabilities_or_the_relative_error() -> None:
    a, b = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    p, q = a.softmax(1), b.softmax(1)
    assert divergence([a], [b], says="logits") == pytest.approx(float((p * (p / q).log()).sum(1).mean()))
    assert divergence([a], [a + 7.0], says="logits") == pytest.approx(0.0, abs=1e-12)
    assert divergence([a], [1.1 * a], says="vectors") == pytest.approx(0.01)
    one = a[:, :1]
    assert divergence([one], [1.1 * one], says="logits") == pytest.approx(0.01), "one output has no distribution"


def test_batches_have_no_padding_and_every_row() -> None:
    given = rows_for(tiny(), count=80, labels=False)
    batches = even_batches(given, rows=70)
    assert all(bool(batch["attention_mask"].all()) for batch in batches)
    seen = sorted(tuple(row.tolist()) for batch in batches for row in batch["input_ids"])
    assert seen == sorted(tuple(row["input_ids"][0].tolist()) for row in given.rows[:70])


def test_factorised_parts_name_both_factors() -> None:
    model = spoilt()
    given = rows_for(model)
    factorise(model, LowRankConfig(keep=0.5), given)
    everything = trial_of(model, given).loss(range(12))
    choose_precision(model, PrecisionConfig(bound=everything * 0.9), given)
    kept = getattr(model.hf.config, KEEP)
    assert all(isinstance(model.hf.get_submodule(name), torch.nn.Linear) for name in kept)
    assert any(name.endswith(".first") for name in kept)


@pytest.mark.parametrize(
    "bad",
    [{"bound": 0.0}, {"bound": float("inf")}, {"rows": 0}, {"save_ms": 1.0}, {"savings_ms": (1.0, 1.0, 1.0)},
     {"save_ms": 1.0, "savings_ms": (1.0, 1.0)}],
    ids=str,
)  # fmt: skip
def test_settings_that_mean_nothing_are_errors(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        PrecisionConfig(**bad)
