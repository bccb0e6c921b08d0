"""A realistic run, made up: a MiniLM classifier, three runtimes, some failures, hostile texts."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from hasten.records import (
    Budget,
    Check,
    Constraint,
    Figures,
    Flip,
    Host,
    Interval,
    Latency,
    Measured,
    Prediction,
    Quality,
    SplitSizes,
    Stage,
    Trial,
    Verdict,
)

HOSTILE = '</script><script>alert("x")</script> [red]not markup[/red] {{ 7*7 }} & <img src=http://evil.example/x>'
MB = 1_000_000


def figures(
    p50_ms: float, *, accuracy: float, bytes: int, rss_bytes: int, tail: float = 1.6, precision: str = "fp32"
) -> Figures:
    return Figures(
        latency_ms=Latency(p50=p50_ms, p90=p50_ms * 1.44, p95=p50_ms * tail, p99=p50_ms * tail * 1.22, n=1200),
        end_to_end_ms=Latency(p50=p50_ms + 0.1, p90=p50_ms * 1.4, p95=p50_ms * tail, p99=p50_ms * tail * 1.4, n=1200),
        throughput_per_s=1000 / p50_ms * 0.94,
        bytes=bytes,
        peak_rss_bytes=rss_bytes,
        load_s=0.4,
        first_call_ms=p50_ms * 4,
        quality=Quality(metric="accuracy", value=accuracy, n=1600, others={"macro_f1": accuracy - 0.2, "mcc": 57.6}),
        precision_ran=precision,
        threads=2,
    )


def recipe(kind: str, **settings: Any) -> dict[str, Any]:
    return {"passes": [], "runtime": {"kind": kind, **settings}}


BASELINE = Measured(
    recipe=recipe("torch", precision="fp32", attention="eager", compile=False),
    recipe_id="a0b1c2d3e4",
    label="torch fp32 eager",
    figures=figures(11.32, accuracy=79.1, bytes=91 * MB, rss_bytes=512 * MB),
)
TUNED = Measured(
    recipe=recipe("torch", precision="bf16", attention="sdpa", compile=True),
    recipe_id="b1c2d3e4f5",
    label="torch bf16 sdpa compiled",
    figures=figures(6.41, accuracy=79.0, bytes=91 * MB, rss_bytes=560 * MB, precision="bf16"),
)
CHOSEN = Measured(
    recipe=recipe("onnxruntime", precision="int8-dynamic", per_channel=True, fusion=True),
    recipe_id="c2d3e4f5a6",
    label="onnxruntime int8-dynamic per-channel fused",
    figures=figures(2.21, accuracy=78.9, bytes=23 * MB, rss_bytes=188 * MB, precision="int8"),
)

#                  id, kind, precision, label, stage, p50 in ms, accuracy, MB
CANDIDATES: tuple[tuple[str, str, str, str, Stage, float, float, int], ...] = (
    ("b1c2d3e4f5", "torch", "bf16", TUNED.label, "final", 6.41, 79.0, 91),
    ("d3e4f5a6b7", "onnxruntime", "fp32", "onnxruntime fp32 fused", "contest", 5.02, 79.1, 90),
    ("c2d3e4f5a6", "onnxruntime", "int8-dynamic", CHOSEN.label, "final", 2.21, 78.9, 23),
    ("e4f5a6b7c8", "onnxruntime", "int8-static", "onnxruntime int8 entropy", "contest", 2.74, 77.2, 23),
    ("f5a6b7c8d9", "openvino", "fp32", "openvino fp32", "screen", 4.83, 79.1, 90),
    ("a6b7c8d9e0", "openvino", "bf16", "openvino bf16", "screen", 4.51, 79.0, 46),
    ("b7c8d9e0f1", "openvino", "int8", "openvino int8 smoothquant 0.5", "contest", 2.46, 78.4, 24),
)
COMPILER = "the compiler needs a C++ compiler: g++ is not installed"
PARITY = "argmax agrees on 61 of 96 rows (63.5 %), at least 90 % needed"
QUALITY = "accuracy drop 6.4 pt (5.1 to 7.8), the budget allows 1 pt"
#                id, kind, label, stage, where it fell, why
REJECTED: tuple[tuple[str, str, str, Stage, str, str], ...] = (
    ("c8d9e0f1a2", "torch", "torch fp32 compiled", "preflight", "export", COMPILER),
    ("d9e0f1a2b3", "onnxruntime", "onnxruntime int8-static minmax", "screen", "parity", PARITY),
    ("e0f1a2b3c4", "openvino", "openvino int8", "screen", "quality", QUALITY),
    ("f1a2b3c4d5", "onnxruntime", HOSTILE, "preflight", "memory", "needs 9.8 GB, 5.1 GB are free"),
)


def trial(row: tuple[str, str, str, str, Stage, float, float, int]) -> Trial:
    identity, kind, precision, label, stage, p50_ms, accuracy, megabytes = row
    drop, speedup = 79.1 - accuracy, 11.32 / p50_ms
    return Trial(
        recipe=recipe(kind, precision=precision),
        recipe_id=identity,
        label=label,
        stage=stage,
        status="ok",
        elapsed_s=8.0 + megabytes / 10,
        figures=figures(p50_ms, accuracy=accuracy, bytes=megabytes * MB, rss_bytes=119 * MB + 3 * megabytes * MB),
        baseline=BASELINE.figures,
        speedup=Interval(speedup, speedup * 0.95, speedup * 1.05),
        quality_drop_pt=Interval(drop, drop - 0.5, drop + 0.5),
        prediction=Prediction(
            latency_ms=p50_ms * 1.12, build_s=9.0, peak_build_bytes=700 * MB, bytes=megabytes * MB + 50_000
        ),
    )


def rejected(row: tuple[str, str, str, Stage, str, str]) -> Trial:
    identity, kind, label, stage, where, reason = row
    measured = where == "quality"
    return Trial(
        recipe=recipe(kind, precision="int8"),
        recipe_id=identity,
        label=label,
        stage=stage,
        status="rejected",
        elapsed_s=3.2,
        rejected_at=where,
        reason=reason,
        figures=figures(2.4, accuracy=72.7, bytes=24 * MB, rss_bytes=200 * MB) if measured else Figures(),
        quality_drop_pt=Interval(6.4, 5.1, 7.8) if measured else None,
    )


@pytest.fixture
def trials() -> list[Trial]:
    preflight = replace(trial(CANDIDATES[1]), stage="preflight", elapsed_s=1.5)
    return [preflight, *map(rejected, REJECTED), *map(trial, CANDIDATES)]


@pytest.fixture
def verdict() -> Verdict:
    quality = Constraint("quality_drop", "<=", 1.0, "quality_drop<=1%")
    latency = Constraint("p95_ms", "<=", 20.0, "p95_ms<=20")
    return Verdict(
        outcome="met",
        sentence="MEETS THE BUDGET: 5.1x faster (4.8-5.4), accuracy 79.1 -> 78.9, drop 0.2 pt (-0.3..0.7)",
        budget=Budget((quality, latency), "quality_drop<=1%, p95_ms<=20"),
        task="text-classification",
        source="./my-classifier",
        baseline=BASELINE,
        tuned_baseline=TUNED,
        chosen=CHOSEN,
        speedup=Interval(5.12, 4.81, 5.39),
        speedup_vs_tuned=Interval(2.9, 2.72, 3.05),
        quality_drop=Interval(0.2, -0.3, 0.7),
        quality_p_value=0.51,
        checks=(Check(quality, 0.2, True, True), Check(latency, 3.54, True, None)),
        relaxations=("relax quality_drop to 1.9pt -> 5.3x",),
        flips=(
            Flip(17, "a gorgeous, witty, seductive movie", "positive", "positive", "negative"),
            Flip(204, HOSTILE, "negative", "positive", "negative"),
            Flip(981, "an " + "overlong and " * 40 + "tiresome film", "negative", "negative", "positive"),
        ),
        splits=SplitSizes(512, 800, 1600, seed=0, how="stratified by label", truncated_rows=3, duplicate_rows=21),
        host=Host(
            cpu="AMD EPYC 9R14",
            cores=2,
            cores_used=(0, 1),
            threads=2,
            memory_bytes=8_000 * MB,
            instructions=("avx2", "avx512f", "avx512_vnni", "avx512_bf16"),
            os="Linux 6.1",
            python="3.11.9",
            versions={"hasten": "0.1.0", "torch": "2.13.0", "onnxruntime": "1.24.1", "openvino": "2026.0"},
        ),
        elapsed_s=412.7,
        warnings=("3 texts are longer than 512 tokens and were truncated",),
    )


@pytest.fixture
def nothing_found(verdict: Verdict) -> Verdict:
    """A run that was stopped before anything passed."""
    return replace(
        verdict,
        outcome="baseline_best",
        sentence="Keep it",
        chosen=None,
        speedup=None,
        speedup_vs_tuned=None,
        quality_drop=None,
        quality_p_value=None,
        checks=(),
        relaxations=(),
        flips=(),
        warnings=(),
        budget=Budget((), ""),
        tuned_baseline=verdict.baseline,
        interrupted=True,
    )


@pytest.fixture
def samples() -> Mapping[str, list[float]]:
    draw = random.Random(0)
    return {
        "baseline": [11.3 * math.exp(draw.gauss(0, 0.286)) for _ in range(1200)],
        "chosen": [2.2 * math.exp(draw.gauss(0, 0.286)) for _ in range(1200)],
    }
