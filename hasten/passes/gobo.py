"""Weights as a handful of shared values and a few exceptions: a smaller file, and nothing else.

Takes a wrapper, gives the wrapper with every matrix of its encoder on 2^bits values, apart from outliers that keep
theirs. ``save_model`` stores such matrices as packed codes (:mod:`hasten.models.codebook_store`); in memory and in
every kernel they are fp32 as before.

Source: Zadeh et al. 2020, "GOBO: Quantizing Attention-Based NLP Models for Low Latency and Energy Efficient Inference".
A Gaussian is fitted to a matrix; weights whose log density is below -4 are outliers. The others start in bins of equal
population, are assigned to the nearest bin mean, and means and bins follow each other until the L1 distance no longer
falls.

Legend: N weights of a matrix that are no outliers, K = 2^bits centroids.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from hasten.passes.calibration import Calibration, Progress
from hasten.passes.settings import as_declared
from hasten.passes.tables import plain_weights
from hasten.records import InputError

_MOST_ROUNDS = 100


@dataclass(frozen=True, slots=True)
class GoboConfig:
    """``bits`` for each code; ``log_density`` is the bound below which a weight is an outlier; ``embeddings``: the
    embedding tables too, often half of a small model's bytes."""

    kind: ClassVar[str] = "gobo"
    bits: Literal[2, 3, 4, 5] = 3
    log_density: float = -4.0
    embeddings: bool = False

    def __post_init__(self) -> None:
        as_declared(self)
        if self.bits not in (2, 3, 4, 5) or not math.isfinite(self.log_density):
            raise InputError(
                f"bits={self.bits}, log_density={self.log_density}", expected="2 to 5 bits and a finite bound",
                remedy="correct the recipe",
            )  # fmt: skip

    @property
    def label(self) -> str:
        return f"gobo {self.bits} bit" + " with embeddings" * self.embeddings


@torch.no_grad()
def quantize_gobo(model: Any, config: GoboConfig, calibration: Calibration) -> Any:
    """The wrapper with its matrices on centroids: seconds, and no data. Raises Rejected for a family without an
    adapter."""
    weights = plain_weights(model, embeddings=config.embeddings, what="GOBO")
    exceptions = 0
    for number, weight in enumerate(weights):
        calibration.listen(Progress("gobo: matrix by matrix", number, len(weights)))
        outliers = gaussian_outliers(weight, log_density=config.log_density)
        inner = weight[~outliers]
        if len(inner):
            weight[~outliers] = nearest(inner, centroids(inner, bits=config.bits))
        exceptions += int(outliers.sum())
    share = 100 * exceptions / sum(weight.numel() for weight in weights)
    calibration.listen(Progress(f"gobo: {share:.2f}% of the weights are outliers", len(weights), len(weights)))
    return model


def gaussian_outliers(weight: Tensor, *, log_density: float) -> Tensor:
    """True where the log density of the Gaussian with the weights' mean and deviation is below ``log_density``."""
    mean, deviation = weight.mean(), weight.std(correction=0)
    if deviation == 0:
        return torch.zeros_like(weight, dtype=torch.bool)
    density = -((weight - mean) / deviation).square() / 2 - torch.log(deviation) - math.log(2 * math.pi) / 2
    return density < log_density


def centroids(values: Tensor, *, bits: int) -> Tensor:
    """At most 2^bits rising values [K] for ``values`` [N], in their own type."""
    rising = values.flatten().double().sort().values
    sums = torch.cat([torch.zeros(1, dtype=torch.float64), rising.cumsum(0)])
    edges = (torch.arange(2**bits + 1) * len(rising)) // 2**bits
    best, best_distance = _means(sums, edges), math.inf
    means = best
    for _ in range(_MOST_ROUNDS):
        inner = torch.searchsorted(rising, (means[1:] + means[:-1]) / 2)
        edges = torch.cat([torch.zeros(1, dtype=torch.int64), inner, torch.tensor([len(rising)])])
        distance = _distance(rising, sums, edges, means)
        if distance >= best_distance:
            break
        best, best_distance = means, distance
        means = _means(sums, edges)
    found: Tensor = torch.unique(best.to(values.dtype))
    return found


def nearest(values: Tensor, book: Tensor) -> Tensor:
    """Each value's nearest entry of ``book``, which rises."""
    middles = (book[1:].double() + book[:-1].double()) / 2
    return book[torch.bucketize(values.double(), middles)]


def _means(sums: Tensor, edges: Tensor) -> Tensor:
    """Means of the bins between ``edges``; empty bins are left out."""
    sizes = edges.diff()
    filled = sizes > 0
    return (sums[edges].diff() / sizes.clamp(min=1))[filled]


def _distance(rising: Tensor, sums: Tensor, edges: Tensor, means: Tensor) -> float:
    """Sum of |w - its mean|: within a bin, what is below the mean counts the other way round."""
    middle = torch.minimum(torch.maximum(torch.searchsorted(rising, means), edges[:-1]), edges[1:])
    below = (middle - edges[:-1]) * means - (sums[middle] - sums[edges[:-1]])
    above = (sums[edges[1:]] - sums[middle]) - (edges[1:] - middle) * means
    return float((below + above).sum())
