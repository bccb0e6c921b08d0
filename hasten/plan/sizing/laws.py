"""Scaling laws: loss by size and data, by bits, and scores by shape.

Takes parameters and tokens as plain numbers; gives losses (nats a token on the law's own corpus) and points. Laws hold
in the range they were fitted in, and say when they are asked outside of it.

Sources: Hoffmann et al. 2022, "Training Compute-Optimal Large Language Models" (approach 3); Besiroglu et al. 2024,
"Chinchilla Scaling: A replication attempt"; Kumar et al. 2024, "Scaling Laws for Precision"; Wu and Tang 2024,
"Performance Law of Large Language Models".

Legend: N parameters, D training tokens, C training operations, P bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from hasten.plan.sizing.shapes import ModelShape
from hasten.records import InputError


@dataclass(frozen=True, slots=True)
class LossLaw:
    """L = E + A / N^a + B / D^b."""

    e: float
    a: float
    b: float
    alpha: float
    beta: float
    source: str

    def loss(self, parameters: float, tokens: float) -> float:
        """Nats a token."""
        return float(self.e + self.a / parameters**self.alpha + self.b / tokens**self.beta)

    def optimal(self, operations: float) -> tuple[float, float]:
        """Parameters and tokens that make the most of so many training operations (C = 6 N D)."""
        g = (self.alpha * self.a / (self.beta * self.b)) ** (1 / (self.alpha + self.beta))
        parameters = g * (operations / 6) ** (self.beta / (self.alpha + self.beta))
        return parameters, operations / 6 / parameters

    def tokens_for(self, parameters: float) -> float:
        """Training tokens with which so many parameters are the best use of the computation."""
        g = (self.alpha * self.a / (self.beta * self.b)) ** (1 / (self.alpha + self.beta))
        operations = 6 * (parameters / g) ** ((self.alpha + self.beta) / self.beta)
        return float(operations / 6 / parameters)


LOSS_LAWS: Mapping[str, LossLaw] = {
    # The constants as printed are rounded so far that they miss the paper's own tables by half; these are its source's.
    "chinchilla": LossLaw(1.6934, 406.4, 410.7, 0.3392, 0.2849, "Hoffmann et al. 2022, approach 3, unrounded"),
    "chinchilla-printed": LossLaw(1.69, 406.4, 410.7, 0.34, 0.28, "Hoffmann et al. 2022, equation 10"),
    "epoch": LossLaw(1.8172, 482.01, 2085.43, 0.3478, 0.3658, "Besiroglu et al. 2024, refit of approach 3"),
}


LOSS_RANGE = {"parameters": (70e6, 16e9), "tokens": (5e9, 500e9)}


@dataclass(frozen=True, slots=True)
class PrecisionLaw:
    """L(N, D, P) = A N_eff^-a + B D^-a + E + delta: weights, activations and cache in few bits make a model worth fewer
    parameters, N_eff = N prod (1 - exp(n - P / g)), and rounding after the training adds delta, the more the longer it
    was. N without embeddings. The offsets n are those of the paper's appendix K, by its text with the sign that gives
    its 7 to 8 bits as the best use of computation."""

    a: float = 4.299e3
    b: float = 1.806e4
    e: float = 2.7648
    alpha: float = 0.4965
    weights: tuple[float, float] = (2.6745, 0.3037)
    activations: tuple[float, float] = (2.2102, 1.4072)
    cache: tuple[float, float] = (0.9578, 2.4185)
    rounding: float = 0.0598
    rounding_tokens: float = 0.5068
    rounding_parameters: float = 0.3439
    rounding_bits: float = 0.5907

    def effective(self, parameters: float, *, weights: float, activations: float, cache: float) -> float:
        """Parameters that a model trained in these bits is worth. Raises InputError for bits that the law has no answer
        for."""
        kept = 1.0
        for (g, n), bits in ((self.weights, weights), (self.activations, activations), (self.cache, cache)):
            share = 1.0 if bits >= 16 else 1.0 - math.exp(n - bits / g)
            if share <= 0.0:
                raise InputError(
                    f"{bits:g} bits", expected="at least 3 bits of weights and 4 of activations and cache",
                    remedy="the law was not fitted on fewer",
                )  # fmt: skip
            kept *= share
        return parameters * kept

    def loss(
        self, parameters: float, tokens: float, *, weights: float = 16, activations: float = 16, cache: float = 16
    ) -> float:
        """Nats a token of a model that was trained in these bits."""
        n = self.effective(parameters, weights=weights, activations=activations, cache=cache)
        return float(self.a * n**-self.alpha + self.b * tokens**-self.alpha + self.e)

    def rounded(self, parameters: float, tokens: float, bits: float) -> float:
        """Nats a token that rounding the weights to ``bits`` after the training costs."""
        grown = tokens**self.rounding_tokens / parameters**self.rounding_parameters
        return float(self.rounding * grown * math.exp(-bits / self.rounding_bits))


PRECISION_LAW = PrecisionLaw()
PRECISION_RANGE = {"parameters": (30e6, 220e6), "tokens": (1.5e9, 26e9)}


def outside(ranges: Mapping[str, tuple[float, float]], *, parameters: float, tokens: float) -> str | None:
    """In words, how far a law is stretched; ``None`` within the range that it was fitted in."""
    said = []
    for name, value in (("parameters", parameters), ("tokens", tokens)):
        low, high = ranges[name]
        if not low <= value <= high:
            said.append(f"{value:.3g} {name} (fitted on {low:.3g} to {high:.3g})")
    return " and ".join(said) or None


# ------------------------------------------------------------------ scores

_FEWEST_B, _MOST_B = 0.5, 500.0
MMLU_ERROR_PT = 5.0  # root mean square over 14 public models; those of 2023 are overrated by up to 13 points


def mmlu(shape: ModelShape, tokens: float) -> float:
    """MMLU in points that a dense decoder of this shape reaches after ``tokens``: a regression on published models.

    Raises InputError outside of what it was fitted on: encoders, mixtures of experts, sizes below 0.5B.
    """
    billions = shape.total / 1e9
    if shape.kind != "decoder" or shape.experts or not _FEWEST_B <= billions <= _MOST_B:
        raise InputError(
            f"{shape.title or shape.name}: {shape.kind}, {billions:.3g}B parameters",
            expected=f"a dense decoder of {_FEWEST_B:g}B to {_MOST_B:g}B parameters: the law was fitted on such",
            remedy="give a measured or published score instead",
        )
    n, h, d = shape.layers, shape.hidden, shape.ffn
    u = math.exp(-(((10.0 / d + 20.0 / h) * n) ** 2))
    saturated = min(tokens / 1e12, billions)  # more trillions than billions of parameters teach nothing more
    found = (
        13.95018 * math.log(u * n) + 0.23072 * math.log(u * h) - 0.48523 * math.log(u * d)
        + 5.39802 * math.log(u * saturated) + 9.19541
    )  # fmt: skip
    return bounded(found)


def bounded(points: float) -> float:
    """Chance below a quarter; above 90 the last points come ever slower."""
    if points < 25.0:
        return 25.0
    return points if points <= 90.0 else 90.0 + 10.0 * math.tanh(0.1 * points - 9.0)


# ------------------------------------------------------------------ the user's own points


@dataclass(frozen=True, slots=True)
class Curve:
    """quality = ceiling - scale x^-power, through measured points; ``rmse`` in points of quality. ``x`` is whatever the
    points were given by: milliseconds, bytes, parameters."""

    ceiling: float
    scale: float
    power: float
    rmse: float
    low: float
    high: float

    def quality(self, x: float) -> float:
        """Raises InputError outside of the measured range, doubled either way."""
        if not self.low / 2 <= x <= self.high * 2:
            raise InputError(
                f"{x:g} is far from what was measured", expected=f"{self.low / 2:g} to {self.high * 2:g}",
                remedy="measure a model of that size",
            )  # fmt: skip
        return float(self.ceiling - self.scale * x**-self.power)

    def needed(self, quality: float) -> float | None:
        """The least x that reaches ``quality``; ``None`` when the curve never does."""
        if quality >= self.ceiling or self.scale <= 0:
            return None
        return float((self.scale / (self.ceiling - quality)) ** (1 / self.power))


def fit_curve(points: Mapping[float, float]) -> Curve:
    """The saturating power law through (x, quality). Raises InputError for fewer than four different x."""
    import numpy as np
    from scipy.optimize import least_squares

    if len(points) < 4:
        raise InputError(
            f"{len(points)} measured points", expected="at least four of different size",
            remedy="let hasten optimize run longer, or give more trials.jsonl files",
        )  # fmt: skip
    x, y = (np.array(v, dtype=float) for v in (list(points), list(points.values())))
    unit = float(np.exp(np.log(x).mean()))
    start = [float(y.max()) + 0.5, max(0.1, float(y.max() - y.min())), 0.5]
    bounds = ([float(y.max()), 0.0, 0.05], [100.0 if y.max() <= 100 else np.inf, np.inf, 5.0])
    start[0] = min(start[0], bounds[1][0] - 1e-6) if bounds[1][0] > y.max() else float(y.max())
    found = least_squares(
        lambda p: p[0] - p[1] * (x / unit) ** -p[2] - y, start, bounds=(bounds[0], [b + 1e-9 for b in bounds[1]])
    )
    ceiling, scale, power = (float(v) for v in found.x)
    rmse = float(np.sqrt(np.mean(found.fun**2)))
    return Curve(ceiling, scale * unit**power, power, rmse, float(x.min()), float(x.max()))
