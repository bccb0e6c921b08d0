"""Read a budget: ``"quality_drop<=1%, p95_ms<=20, size<=50MB"``.

Takes text, gives a :class:`Budget` with every bound in its metric's own unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from hasten.plan.bounds import ENERGY_UNITS, SIZE_UNITS, TIME_UNITS, Kind, Metrics, read_bounds
from hasten.records import Budget, Constraint, Metric

_TIME = Kind(TIME_UNITS, "<=")
_SIZE = Kind(SIZE_UNITS, "<=")
_POINTS = {"": 1.0, "%": 1.0, "pt": 1.0, "pts": 1.0, "points": 1.0}
_KINDS: Mapping[str, Kind] = {
    "quality_drop": Kind(_POINTS, "<=", low=-100.0, high=100.0, what="a drop"),  # 100 points is all there is to lose
    "quality": Kind(_POINTS, ">=", low=0.0, high=100.0, what="a quality"),
    "p50_ms": _TIME,
    "p90_ms": _TIME,
    "p95_ms": _TIME,
    "p99_ms": _TIME,
    "throughput_per_s": Kind({"": 1.0, "/s": 1.0, "req/s": 1.0, "rows/s": 1.0, "/min": 1 / 60}, ">="),
    "bytes": _SIZE,
    "peak_rss_bytes": _SIZE,
    "energy_j": Kind(ENERGY_UNITS, "<="),
    "speedup": Kind({"": 1.0, "x": 1.0}, ">="),
    "ttft_ms": _TIME,
    "ttft_p95_ms": _TIME,
    "tpot_ms": _TIME,
    "tpot_p95_ms": _TIME,
    "tokens_per_s": Kind({"": 1.0, "/s": 1.0, "tokens/s": 1.0}, ">="),
}
_NAMES: Mapping[str, str] = {
    "drop": "quality_drop",
    "p50": "p50_ms",
    "latency_ms": "p50_ms",
    "latency": "p50_ms",
    "p90": "p90_ms",
    "p95": "p95_ms",
    "p99": "p99_ms",
    "throughput": "throughput_per_s",
    "size": "bytes",
    "memory": "peak_rss_bytes",
    "peak_rss": "peak_rss_bytes",
    "energy": "energy_j",
    "ttft": "ttft_ms",
    "ttft_p95": "ttft_p95_ms",
    "tpot": "tpot_ms",
    "tpot_p95": "tpot_p95_ms",
    "tokens": "tokens_per_s",
}
_METRICS = Metrics(_KINDS, _NAMES, title="budget", example="p95_ms<=20")


def parse_budget(text: str) -> Budget:
    """The bounds in ``text``; an empty text is an empty budget.

    A comparison is ``<=`` or ``>=``; ``%`` and ``pt`` are points of the metric (90.0 -> 89.0 is 1 point).
    Raises InputError pointing at the token that is wrong.
    """
    found = read_bounds(text, _METRICS)
    constraints = (Constraint(cast(Metric, b.metric), b.op, b.value, b.text) for b in found)
    return Budget(constraints=tuple(constraints), text=text.strip())
