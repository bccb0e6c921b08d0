"""Read a budget: ``"quality_drop<=1%, p95_ms<=20, size<=50MB"``.

Takes text, gives a :class:`Budget` with every bound in its metric's own unit. Anything
that is not understood is an InputError that points at the place.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from hasten.records import Budget, Constraint, InputError, Metric

Op = Literal["<=", ">="]


@dataclass(frozen=True, slots=True)
class _Kind:
    """Units (as factors to the metric's own), the default unit, and the only comparison that bounds anything."""

    units: Mapping[str, float]
    op: Op


_TIME = _Kind({"": 1.0, "ms": 1.0, "us": 1e-3, "µs": 1e-3, "s": 1e3}, "<=")
_SIZE = _Kind(
    {"": 1.0, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}, "<="
)
_POINTS = {"": 1.0, "%": 1.0, "pt": 1.0, "pts": 1.0, "points": 1.0}
_KINDS: Mapping[Metric, _Kind] = {
    "quality_drop": _Kind(_POINTS, "<="),
    "quality": _Kind(_POINTS, ">="),
    "p50_ms": _TIME,
    "p90_ms": _TIME,
    "p95_ms": _TIME,
    "p99_ms": _TIME,
    "throughput_per_s": _Kind({"": 1.0, "/s": 1.0, "req/s": 1.0, "rows/s": 1.0, "/min": 1 / 60}, ">="),
    "bytes": _SIZE,
    "peak_rss_bytes": _SIZE,
    "energy_j": _Kind({"": 1.0, "j": 1.0, "mj": 1e-3, "kj": 1e3}, "<="),
    "speedup": _Kind({"": 1.0, "x": 1.0}, ">="),
}
_NAMES: Mapping[str, Metric] = {
    **{name: name for name in _KINDS},
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
}
_SPLIT = re.compile(r"[,;\n]|\band\b", re.IGNORECASE)
_BOUND = re.compile(r"\s*([A-Za-z_]\w*)\s*(<=|>=|==|=<|=>|<|>|=|≤|≥)\s*([+-]?[\d.]+(?:[eE][+-]?\d+)?)\s*(\S*)\s*")
# A bound on these at zero or below can never hold or never fails; 100 points is all there is to lose.
_POSITIVE = {m for m in _KINDS if m not in ("quality_drop", "quality")}


def parse_budget(text: str) -> Budget:
    """The bounds in ``text``; an empty text is an empty budget.

    A comparison is ``<=`` or ``>=``; ``%`` and ``pt`` are points of the metric (90.0 -> 89.0 is 1 point).
    Raises InputError pointing at the token that is wrong.
    """
    found: list[Constraint] = []
    start = 0
    for end in [m.span() for m in _SPLIT.finditer(text)] + [(len(text), len(text))]:
        part = text[start : end[0]]
        if part.strip():
            found.append(_constraint(text, start, part))
        start = end[1]
    _check_together(text, found)
    return Budget(constraints=tuple(found), text=text.strip())


def _constraint(text: str, start: int, part: str) -> Constraint:
    match = _BOUND.fullmatch(part)
    if not match:
        position = start + len(part) - len(part.lstrip())
        raise _error(text, position, f"{part.strip()!r} is no bound", "METRIC<=VALUE or METRIC>=VALUE, as p95_ms<=20")
    name, sign, number, unit = match.groups()
    metric = _metric(text, start + match.start(1), name)
    kind = _KINDS[metric]
    _check_sign(text, start + match.start(2), sign, metric, kind.op)
    value = _number(text, start + match.start(3), number) * _factor(text, start + match.start(4), unit, metric)
    if not math.isfinite(value):
        raise _error(text, start + match.start(3), f"{number}{unit} is no number that fits", "a smaller value")
    _check_range(text, start + match.start(3), metric, value)
    return Constraint(metric=metric, op=kind.op, value=value, text=part.strip())


def _metric(text: str, position: int, name: str) -> Metric:
    found = _NAMES.get(name.lower())
    if found:
        return found
    near = difflib.get_close_matches(name.lower(), _NAMES, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise _error(text, position, f"unknown metric {name!r}{hint}", f"one of {', '.join(_KINDS)}")


def _check_sign(text: str, position: int, sign: str, metric: Metric, op: Op) -> None:
    plain = {"≤": "<=", "≥": ">=", "=<": "<=", "=>": ">="}.get(sign, sign)
    if plain == op:
        return
    if plain in ("<", ">", "=", "=="):
        raise _error(text, position, f"{sign!r} is not a bound hasten reads", f"{metric}{op}VALUE")
    better = "lower" if op == "<=" else "higher"
    raise _error(text, position, f"{metric} is better {better}, so {sign!r} bounds nothing", f"{metric}{op}VALUE")


def _number(text: str, position: int, number: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _error(text, position, f"{number!r} is no number", "a number such as 20 or 0.5")
    return value


def _factor(text: str, position: int, unit: str, metric: Metric) -> float:
    units = _KINDS[metric].units
    if unit == "MJ":  # units are read in any case, but here the case is a factor of a billion
        raise _error(text, position, "MJ is megajoule", "mJ for millijoule, or J")
    if unit.lower() in units:
        return units[unit.lower()]
    known = ", ".join(u for u in units if u)
    near = difflib.get_close_matches(unit.lower(), [u for u in units if u], n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise _error(text, position, f"unknown unit {unit!r} for {metric}{hint}", f"one of {known}, or none")


def _check_range(text: str, position: int, metric: Metric, value: float) -> None:
    if metric in _POSITIVE and value <= 0:
        raise _error(text, position, f"{metric} can never be {value:g} or better", "a value above zero")
    if metric == "quality_drop" and not -100 <= value <= 100:
        raise _error(text, position, f"a drop of {value:g} points", "a value from -100 to 100 points")
    if metric == "quality" and not 0 <= value <= 100:
        raise _error(text, position, f"a quality of {value:g} points", "a value from 0 to 100 points")


def _check_together(text: str, found: list[Constraint]) -> None:
    seen: dict[str, Constraint] = {}
    for constraint in found:
        if constraint.metric in seen:
            other = seen[constraint.metric].text
            raise _error(
                text,
                text.rfind(constraint.text),
                f"{constraint.metric} is bounded twice (also {other!r})",
                "one bound",
            )
        seen[constraint.metric] = constraint


def _error(text: str, position: int, what: str, expected: str) -> InputError:
    line = " ".join(text.split("\n"))
    return InputError(
        f"budget: {what}\n    {line}\n    {' ' * position}^",
        expected=expected,
        remedy="correct the budget; separate bounds with commas",
    )
