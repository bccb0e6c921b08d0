"""Families that are not a row of layers with one attention and one FFN each: what works on them, and what says no."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import SIZES, shaken
from unit_cases import outputs, rows_for, units_of

from hasten.models.reshape import open_model, save_model
from hasten.passes import run_pass
from hasten.passes.calibration import Calibration
from hasten.passes.entropy import EntropyConfig
from hasten.passes.fisher import FisherConfig
from hasten.passes.gradient import GradientConfig
from hasten.passes.group_quant import ZeroQuantConfig
from hasten.passes.half import HalfConfig
from hasten.passes.kprune import KPruneConfig
from hasten.passes.low_rank import LowRankConfig
from hasten.passes.magnitude import MagnitudeUnitsConfig
from hasten.passes.magnitude_weights import MagnitudeConfig
from hasten.passes.narrowing import NarrowConfig
from hasten.passes.prefix import PrefixConfig
from hasten.passes.random_units import RandomUnitsConfig
from hasten.passes.smooth_quant import SmoothQuantConfig
from hasten.passes.wanda import WandaConfig
from hasten.records import Config, Rejected
from hasten.tasks.wrappers import LogitsWrapper

FAMILIES = ("albert", "mobilebert")
NUMBERS = (MagnitudeConfig(), HalfConfig(bound=10.0))
UNITS = (
    MagnitudeUnitsConfig(keep=0.5, round_to=8),
    GradientConfig(keep=0.5, round_to=8),
    RandomUnitsConfig(keep=0.5, round_to=8),
    FisherConfig(keep=0.5, round_to=8, tune=False),
    NarrowConfig(round_to=8),
)
IN_TURN = (
    KPruneConfig(keep=0.5, round_to=8), FisherConfig(keep=0.5, round_to=8), EntropyConfig(keep=0.5, round_to=8),
    LowRankConfig(), ZeroQuantConfig(steps=1), WandaConfig(), PrefixConfig(tokens=2),
)  # fmt: skip


def tiny(family: str) -> LogitsWrapper:
    import transformers as t

    torch.manual_seed(0)
    kinds: dict[str, Any] = {"albert": t.AlbertConfig, "mobilebert": t.MobileBertConfig}
    extra = {"intra_bottleneck_size": 16, "num_feedforward_networks": 2} if family == "mobilebert" else {}
    config = kinds[family](
        vocab_size=66, max_position_embeddings=66, pad_token_id=1, embedding_size=16, num_labels=3, **SIZES, **extra
    )
    return LogitsWrapper(shaken(t.AutoModelForSequenceClassification.from_config(config))).eval()


def applied(config: Config, family: str) -> tuple[LogitsWrapper, Calibration]:
    model = tiny(family)
    given = rows_for(model)
    return run_pass(model, config, given), given


def survives(model: LogitsWrapper, given: Calibration, folder: Path) -> None:
    found = outputs(model, given)
    assert torch.isfinite(found).all()
    save_model(model.hf, folder)
    opened = open_model(type(model.hf), folder, attention="sdpa", dtype=torch.float32)
    assert torch.allclose(outputs(LogitsWrapper(opened), given), found, atol=1e-5)


@pytest.mark.parametrize("config", NUMBERS, ids=lambda config: config.kind)
@pytest.mark.parametrize("family", FAMILIES)
def test_numbers(family: str, config: Config, tmp_path: Path) -> None:
    survives(*applied(config, family), tmp_path)


@pytest.mark.parametrize("config", UNITS, ids=lambda config: config.kind)
def test_albert_loses_units_everywhere_at_once(config: Config, tmp_path: Path) -> None:
    made, given = applied(config, "albert")
    assert sum(p.numel() for p in made.parameters()) < sum(p.numel() for p in tiny("albert").parameters())
    survives(made, given, tmp_path)


def test_masks_count_in_every_turn() -> None:
    model = tiny("albert")
    given = rows_for(model)
    units = units_of(model)
    masks = units.ones()
    assert len(masks.heads) == len(masks.neurons) == 1
    masks.heads[0][1], masks.neurons[0][3:30] = 0, 0
    with units.masked(masks):
        masked = outputs(model, given)
    units.keep(masks)
    assert torch.allclose(outputs(model, given), masked, atol=1e-5)


@pytest.mark.parametrize("config", IN_TURN, ids=lambda config: config.kind)
def test_albert_is_not_walked_through(config: Config) -> None:
    with pytest.raises(Rejected, match=r"runs more than once|takes earlier keys"):
        applied(config, "albert")


@pytest.mark.parametrize("config", [*UNITS, *IN_TURN[:3], IN_TURN[-1]], ids=lambda config: config.kind)
def test_mobilebert_keeps_its_shapes(config: Config) -> None:
    with pytest.raises(Rejected, match=r"2 feed-forward blocks|takes earlier keys"):
        applied(config, "mobilebert")


@pytest.mark.parametrize(
    "config", [ZeroQuantConfig(steps=2), WandaConfig(), LowRankConfig(which="all", keep=0.7, round_to=2)],
    ids=lambda config: config.kind,
)  # fmt: skip
def test_mobilebert_layers_are_taken_in_turn(config: Config, tmp_path: Path) -> None:
    survives(*applied(config, "mobilebert"), tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_they_stay_the_same_function_when_they_are_smoothed(family: str) -> None:
    model = tiny(family)
    given = rows_for(model)
    whole, before = outputs(model, given), [p.detach().clone() for p in model.parameters()]
    run_pass(model, SmoothQuantConfig(), given)
    assert torch.allclose(outputs(model, given), whole, atol=1e-5)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
