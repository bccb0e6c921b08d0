"""What a candidate will cost before it is built: predictions from its two-layer copy.

Takes preflight trials and the baseline's figures at both depths, gives labelled
predictions. Latency and size of an encoder are affine in its layers; the ratio of full
to short is learnt from every pair measured on this host so far, first of all the
baseline's.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from hasten.records import Figures, Prediction, Trial

# A torch process with transformers and an exporter, before any weights.
_PROCESS_BYTES = 900_000_000
# fp32 weights, the copy a recipe changes, the exported graph, the quantizer's input and its output.
_BUILD_COPIES = 5
# What a teacher's answers may take in memory.
_TARGET_BYTES = 1_500_000_000


def predict(trial: Trial, trials: Sequence[Trial], *, weights_bytes: int, depth_ratio: float) -> Prediction:
    """Prediction for the full model from its preflight ``trial``.

    ``depth_ratio`` is full layers over preflight layers; ``weights_bytes`` the checkpoint's fp32 size.
    """
    short = trial.figures
    assert short.latency_ms is not None
    assert short.bytes is not None
    latency_growth = _growth(trials, "latency") or depth_ratio
    size_growth = _growth(trials, "bytes") or depth_ratio
    return Prediction(
        latency_ms=short.latency_ms.p50 * latency_growth,
        build_s=trial.elapsed_s * max(1.0, depth_ratio**0.5),
        peak_build_bytes=_PROCESS_BYTES + _BUILD_COPIES * weights_bytes,
        bytes=round(short.bytes * size_growth),
    )


def training_bytes(weights_bytes: int) -> int:
    """Memory that training takes at most: teacher, student, gradients, two moments, best weights, and targets."""
    return _PROCESS_BYTES + 6 * weights_bytes + _TARGET_BYTES


def prediction_error(trials: Sequence[Trial]) -> float | None:
    """Median relative error of predicted against measured p50 where both are known; ``None`` before."""
    measured = {t.recipe_id: t.figures for t in trials if t.stage != "preflight" and t.status == "ok"}
    errors = [
        abs(t.prediction.latency_ms / found - 1)
        for t in trials
        if t.prediction and (found := _value(measured.get(t.recipe_id), "latency"))
    ]
    return median(errors) if errors else None


def _growth(trials: Sequence[Trial], what: str) -> float | None:
    """Median of full over short, over the recipes that were measured at both depths."""
    plain = [t for t in trials if not t.recipe["passes"]]  # a smaller shape is rehearsed at its full depth
    short = {t.recipe_id: t.figures for t in plain if t.stage == "preflight" and t.status == "ok"}
    ratios = []
    for trial in trials:
        if trial.stage == "screen" and trial.status == "ok" and trial.recipe_id in short:
            a, b = _value(short[trial.recipe_id], what), _value(trial.figures, what)
            if a and b:
                ratios.append(b / a)
    return median(ratios) if ratios else None


def _value(figures: Figures | None, what: str) -> float | None:
    if figures is None:
        return None
    if what == "bytes":
        return figures.bytes
    return figures.latency_ms.p50 if figures.latency_ms else None
