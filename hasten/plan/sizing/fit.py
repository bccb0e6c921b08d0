"""What one pass through a model takes on a host, learnt from a few small models that were timed there.

Takes points (work, seconds), gives a :class:`LayerFit`: non-negative costs of what a pass consists of, found by least
squares on relative errors. A roofline says what hardware could do; this says what the runtime on it does, with its
calls, its thin matrices and its softmax.

Legend: B rows, S tokens of a row, L layers, H hidden size.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from hasten.records import InputError

FEWEST_POINTS = 8
_PARTS = ("calls", "layers", "ops", "weights", "scores", "values")
_ERROR_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Work:
    """What a pass consists of: ``calls`` is 1, ``layers`` L, ``ops`` of all matrix products, ``weights`` parameters of
    the layers that they read, ``scores`` attention scores over all heads and layers, ``values`` B S H L activations;
    for decoders also the ``head`` parameters and the bytes of keys and values that are read."""

    calls: float
    layers: float
    ops: float
    weights: float
    scores: float
    values: float
    head: float = 0.0
    cache_bytes: float = 0.0


@dataclass(frozen=True, slots=True)
class LayerFit:
    """Seconds for one unit of each part of :class:`Work`. ``error`` is the share that nine of ten points of a shape
    stayed within when the whole shape was left out; ``points`` how many there were."""

    calls: float
    layers: float
    ops: float
    weights: float
    scores: float
    values: float
    error: float
    points: int

    def seconds(self, work: Work) -> float:
        """What a pass takes."""
        return float(sum(getattr(self, part) * getattr(work, part) for part in _PARTS))


@dataclass(frozen=True, slots=True)
class MemoryFit:
    """Bytes of a process: ``base``, and so many for each byte of the model's file and of its activations."""

    base: float
    file: float
    activations: float


def fit_layers(points: Sequence[tuple[Hashable, Work, float]]) -> LayerFit:
    """Costs that reproduce ``points``: (shape, work, seconds). Raises InputError for fewer than eight, or one shape."""
    import numpy as np

    shapes = list(dict.fromkeys(shape for shape, _, _ in points))
    if len(points) < FEWEST_POINTS or len(shapes) < 2:
        raise InputError(
            f"{len(points)} timed passes of {len(shapes)} shapes", expected=f"at least {FEWEST_POINTS} of two shapes",
            remedy="measure more",
        )  # fmt: skip
    errors = []
    for out in shapes:
        made = _solved([(w, s) for shape, w, s in points if shape != out])
        errors += [abs(made.seconds(w) / s - 1.0) for shape, w, s in points if shape == out]
    error = float(np.quantile(errors, _ERROR_SHARE))
    return replace(_solved([(w, s) for _, w, s in points]), error=error)


def fit_memory(points: Sequence[tuple[float, float, float]]) -> MemoryFit:
    """Through (file, activations, process) bytes, by non-negative least squares on relative errors."""
    base, file, live = _least_squares([(1.0, file, live) for file, live, _ in points], [held for _, _, held in points])
    return MemoryFit(base, file, live)


def _solved(points: Sequence[tuple[Work, float]]) -> LayerFit:
    rows = [[getattr(work, part) for part in _PARTS] for work, _ in points]
    calls, layers, ops, weights, scores, values = _least_squares(rows, [seconds for _, seconds in points])
    return LayerFit(calls, layers, ops, weights, scores, values, 0.0, len(points))


def _least_squares(rows: Sequence[Sequence[float]], wanted: Sequence[float]) -> list[float]:
    """Non-negative costs with the least sum of squared relative errors."""
    import numpy as np
    from scipy.optimize import nnls

    table = np.array(rows, dtype=float) / np.array(wanted, dtype=float)[:, None]
    scale = np.maximum(table.max(axis=0), 1e-30)
    found, _ = nnls(table / scale, np.ones(len(wanted)))
    return [float(value) for value in found / scale]
