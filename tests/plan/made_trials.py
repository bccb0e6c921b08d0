"""Trials, recipes and configs made by hand: what the planning room is fed in its tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from hasten.records import Figures, Interval, Latency, Prediction, Quality, Recipe, Stage, Trial


@dataclass(frozen=True, slots=True)
class MadeTorch:
    kind: ClassVar[str] = "torch"
    precision: str = "fp32"
    attention: str = "sdpa"
    compile: bool = False
    kv_cache: str | None = None
    seed: int = 0

    @property
    def label(self) -> str:
        return self.precision


@dataclass(frozen=True, slots=True)
class MadeOnnx:
    kind: ClassVar[str] = "onnxruntime"
    precision: str = "fp32"
    fusion: bool = True
    seed: int = 0

    @property
    def label(self) -> str:
        return self.precision


@dataclass(frozen=True, slots=True)
class MadeOpenVino:
    kind: ClassVar[str] = "openvino"
    precision: str = "fp32"
    smooth_quant_alpha: float = 0.95
    seed: int = 0

    @property
    def label(self) -> str:
        return self.precision


def recipe(made: MadeTorch | MadeOnnx | MadeOpenVino) -> Recipe:
    return Recipe(passes=(), runtime=made)


def latency(p50: float) -> Latency:
    return Latency(p50=p50, p90=p50 * 1.1, p95=p50 * 1.2, p99=p50 * 1.5, n=100)


def figures(p50: float = 10.0, *, size: int = 40_000_000, quality: float = 90.0, rss: int = 500_000_000) -> Figures:
    return Figures(
        latency_ms=latency(p50),
        bytes=size,
        peak_rss_bytes=rss,
        quality=Quality(metric="accuracy", value=quality, n=500),
    )


def trial(
    of: Recipe | str = "a",
    *,
    stage: Stage = "screen",
    speedup: float | None = 2.0,
    drop: float | None = 0.0,
    width: float = 0.5,
    predicted_ms: float | None = None,
    elapsed_s: float = 1.0,
    rejected_at: str | None = None,
    **measured: Any,
) -> Trial:
    """One row; a string makes up a recipe that is known by that id only."""
    data: dict[str, Any] = of.to_dict() if isinstance(of, Recipe) else {"passes": [], "runtime": {"kind": "made"}}
    prediction = None if predicted_ms is None else Prediction(predicted_ms, build_s=1.0, peak_build_bytes=0, bytes=0)
    return Trial(
        recipe=data,
        recipe_id=of if isinstance(of, str) else of.id,
        label=of if isinstance(of, str) else of.label,
        stage=stage,
        status="rejected" if rejected_at else "ok",
        elapsed_s=elapsed_s,
        rejected_at=rejected_at,
        figures=Figures() if rejected_at else figures(**measured),
        speedup=None if speedup is None else Interval(speedup, speedup * 0.9, speedup * 1.1),
        quality_drop_pt=None if drop is None else Interval(drop, drop - width, drop + width),
        prediction=prediction,
    )
