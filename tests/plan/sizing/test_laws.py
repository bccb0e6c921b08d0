"""Scaling laws against the tables that their authors published."""

from __future__ import annotations

import numpy as np
import pytest

from hasten.plan.sizing import laws
from hasten.plan.sizing.shapes import read_models
from hasten.records import InputError

MODELS = read_models()
CHINCHILLA, EPOCH = laws.LOSS_LAWS["chinchilla"], laws.LOSS_LAWS["epoch"]
# Hoffmann et al. 2022: parameters, tokens by approach 1 (table 3) and by approach 3 (table A3).
TABLES = [
    (400e6, 8.0e9, 9.2e9), (1e9, 20.2e9, 27.1e9), (10e9, 205.1e9, 410.1e9), (67e9, 1.5e12, 4.1e12),
    (175e9, 3.7e12, 12.0e12), (280e9, 5.9e12, 20.1e12), (520e9, 11.0e12, 43.5e12), (1e12, 21.2e12, 94.1e12),
]  # fmt: skip


@pytest.mark.parametrize(("parameters", "_first", "tokens"), TABLES)
def test_optimal_tokens_are_those_of_the_papers_third_approach(parameters: float, _first: float, tokens: float) -> None:
    assert CHINCHILLA.tokens_for(parameters) == pytest.approx(tokens, rel=0.20)


@pytest.mark.parametrize(("parameters", "tokens", "_third"), TABLES[:6])
def test_the_refit_agrees_with_the_papers_first_approach(parameters: float, tokens: float, _third: float) -> None:
    assert EPOCH.tokens_for(parameters) == pytest.approx(tokens, rel=0.20)


def test_exponents_and_gophers_budget() -> None:
    share = CHINCHILLA.beta / (CHINCHILLA.alpha + CHINCHILLA.beta)
    assert round(share, 2) == 0.46  # table 2, third row
    parameters, tokens = CHINCHILLA.optimal(5.76e23)
    assert parameters == pytest.approx(40e9, rel=0.02)
    assert 6 * parameters * tokens == pytest.approx(5.76e23)
    assert round(EPOCH.beta / (EPOCH.alpha + EPOCH.beta), 4) == 0.5126
    printed = laws.LOSS_LAWS["chinchilla-printed"]
    assert printed.loss(70e9, 1.4e12) == pytest.approx(1.9366, abs=1e-4)
    assert EPOCH.loss(70e9, 1.4e12) == pytest.approx(1.9739, abs=1e-4)


def test_the_optimum_is_one() -> None:
    parameters, tokens = EPOCH.optimal(1e22)
    best = EPOCH.loss(parameters, tokens)
    for factor in (0.8, 1.25):
        assert EPOCH.loss(parameters * factor, tokens / factor) > best


def test_few_bits_make_a_model_worth_fewer_parameters() -> None:
    law = laws.PRECISION_LAW
    assert law.effective(1e9, weights=8, activations=16, cache=16) / 1e9 == pytest.approx(0.932, abs=1e-3)
    assert law.effective(1e9, weights=16, activations=4, cache=16) / 1e9 == pytest.approx(0.331, abs=1e-3)
    assert law.loss(30e6, 26e9) == pytest.approx(3.720, abs=0.01)
    assert law.rounded(30e6, 26e9, 4) == pytest.approx(0.0349, abs=1e-4)
    assert law.rounded(30e6, 52e9, 4) / law.rounded(30e6, 26e9, 4) == pytest.approx(1.42, abs=0.01)
    with pytest.raises(InputError, match="not fitted"):
        law.effective(1e9, weights=16, activations=3, cache=16)


def test_the_best_use_of_computation_is_seven_to_eight_bits() -> None:
    """Kumar et al. 2024, finding 3: with weights, activations and cache alike."""
    bits = np.arange(4.0, 16.0, 0.1)
    worth = [laws.PRECISION_LAW.effective(1.0, weights=b, activations=b, cache=b) / b for b in bits]
    assert 6.5 <= bits[int(np.argmax(worth))] <= 8.0


def test_laws_say_when_they_are_stretched() -> None:
    assert laws.outside(laws.PRECISION_RANGE, parameters=100e6, tokens=10e9) is None
    assert "parameters" in str(laws.outside(laws.PRECISION_RANGE, parameters=8e9, tokens=10e9))


# Published MMLU (model cards), the law's value as computed by hand, points that it may be off.
SCORES = [("llama-3-8b", 65.4, 66.6, 3), ("llama-3.1-405b", 87.9, 85.2, 4), ("gemma-2-9b", 68.5, 71.3, 4)]


@pytest.mark.parametrize(("name", "by_hand", "published", "off"), SCORES)
def test_scores_by_shape(name: str, by_hand: float, published: float, off: float) -> None:
    shape = MODELS[name]
    assert shape.tokens_trained is not None
    found = laws.mmlu(shape, shape.tokens_trained)
    assert found == pytest.approx(by_hand, abs=0.3)
    assert abs(found - published) <= off


def test_the_law_keeps_to_what_it_was_fitted_on() -> None:
    for name in ("bert-base-uncased", "mixtral-8x7b", "smollm2-135m"):
        with pytest.raises(InputError, match="dense decoder"):
            laws.mmlu(MODELS[name], 1e12)
    assert laws.bounded(12.0) == 25.0
    assert 90.0 < laws.bounded(99.0) < 100.0
    shape = MODELS["llama-3-8b"]
    assert laws.mmlu(shape, 100e12) == laws.mmlu(shape, 8.03e12)  # saturated


def test_a_curve_goes_through_measured_points() -> None:
    x = np.array([0.5, 1.0, 2.0, 4.0, 8.0])
    curve = laws.fit_curve(dict(zip(x, 93.0 - 2.0 * x**-0.8, strict=True)))
    assert curve.rmse < 0.05
    assert curve.quality(3.0) == pytest.approx(93.0 - 2.0 * 3**-0.8, abs=0.1)
    needed = curve.needed(92.0)
    assert needed is not None
    assert curve.quality(needed) == pytest.approx(92.0)
    assert curve.needed(99.9) is None
    with pytest.raises(InputError, match="far from what was measured"):
        curve.quality(100.0)
    with pytest.raises(InputError, match="at least four"):
        laws.fit_curve({1.0: 90.0})
