"""Read bounds such as ``"p95_ms<=20, size<=50MB"``.

Takes text and the metrics that may be bounded, gives :class:`Bound` with every value in its metric's own unit. Anything
that is not understood is an InputError that points at the place.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from hasten.records import InputError

Op = Literal["<=", ">="]


@dataclass(frozen=True, slots=True)
class Kind:
    """Units (as factors to the metric's own), the only comparison that bounds anything, and the values that make sense:
    by default all above zero, since at zero or below a bound never holds or never fails."""

    units: Mapping[str, float]
    op: Op
    low: float | None = None
    high: float | None = None
    what: str = "a value"


@dataclass(frozen=True, slots=True)
class Bound:
    """``text`` is what the user wrote."""

    metric: str
    op: Op
    value: float
    text: str

    def holds(self, value: float) -> bool:
        return value <= self.value if self.op == "<=" else value >= self.value


@dataclass(frozen=True, slots=True)
class Metrics:
    """What may be bounded: ``kinds`` by metric, further ``names`` for them, and the ``title`` of such a text."""

    kinds: Mapping[str, Kind]
    names: Mapping[str, str]
    title: str
    example: str

    def known(self) -> dict[str, str]:
        return {**{name: name for name in self.kinds}, **self.names}


TIME_UNITS = {"": 1.0, "ms": 1.0, "us": 1e-3, "µs": 1e-3, "s": 1e3}
SIZE_UNITS = {
    "": 1.0,
    "b": 1.0,
    "kb": 1e3,
    "mb": 1e6,
    "gb": 1e9,
    "tb": 1e12,
    "kib": 2.0**10,
    "mib": 2.0**20,
    "gib": 2.0**30,
    "tib": 2.0**40,
}
ENERGY_UNITS = {"": 1.0, "j": 1.0, "mj": 1e-3, "kj": 1e3}
_SPLIT = re.compile(r"[,;\n]|\band\b", re.IGNORECASE)
_BOUND = re.compile(r"\s*([A-Za-z_]\w*)\s*(<=|>=|==|=<|=>|<|>|=|≤|≥)\s*([+-]?[\d.]+(?:[eE][+-]?\d+)?)\s*(\S*)\s*")


def read_bounds(text: str, metrics: Metrics) -> tuple[Bound, ...]:
    """The bounds in ``text``; an empty text has none.

    Raises InputError pointing at the token that is wrong, and for a metric that is bounded twice.
    """
    found: list[Bound] = []
    start = 0
    for end in [m.span() for m in _SPLIT.finditer(text)] + [(len(text), len(text))]:
        part = text[start : end[0]]
        if part.strip():
            found.append(_Reader(text, metrics).bound(start, part))
        start = end[1]
    _check_together(text, found, metrics)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Reader:
    """One text and its metrics: everything an error needs to point at the place."""

    text: str
    metrics: Metrics

    def bound(self, start: int, part: str) -> Bound:
        match = _BOUND.fullmatch(part)
        if not match:
            position = start + len(part) - len(part.lstrip())
            expected = f"METRIC<=VALUE or METRIC>=VALUE, as {self.metrics.example}"
            raise self.error(position, f"{part.strip()!r} is no bound", expected)
        name, sign, number, unit = match.groups()
        metric = self.metric(start + match.start(1), name)
        kind = self.metrics.kinds[metric]
        self.check_sign(start + match.start(2), sign, metric, kind.op)
        value = self.number(start + match.start(3), number) * self.factor(start + match.start(4), unit, metric)
        if not math.isfinite(value):
            raise self.error(start + match.start(3), f"{number}{unit} is no number that fits", "a smaller value")
        self.check_range(start + match.start(3), metric, value)
        return Bound(metric=metric, op=kind.op, value=value, text=part.strip())

    def metric(self, position: int, name: str) -> str:
        known = self.metrics.known()
        if name.lower() in known:
            return known[name.lower()]
        near = difflib.get_close_matches(name.lower(), known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise self.error(position, f"unknown metric {name!r}{hint}", f"one of {', '.join(self.metrics.kinds)}")

    def check_sign(self, position: int, sign: str, metric: str, op: Op) -> None:
        plain = {"≤": "<=", "≥": ">=", "=<": "<=", "=>": ">="}.get(sign, sign)
        if plain == op:
            return
        if plain in ("<", ">", "=", "=="):
            raise self.error(position, f"{sign!r} is not a bound hasten reads", f"{metric}{op}VALUE")
        better = "lower" if op == "<=" else "higher"
        raise self.error(position, f"{metric} is better {better}, so {sign!r} bounds nothing", f"{metric}{op}VALUE")

    def number(self, position: int, number: str) -> float:
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise self.error(position, f"{number!r} is no number", "a number such as 20 or 0.5")
        return value

    def factor(self, position: int, unit: str, metric: str) -> float:
        units = self.metrics.kinds[metric].units
        if unit == "MJ":  # units are read in any case, but here the case is a factor of a billion
            raise self.error(position, "MJ is megajoule", "mJ for millijoule, or J")
        if unit.lower() in units:
            return units[unit.lower()]
        known = ", ".join(u for u in units if u)
        near = difflib.get_close_matches(unit.lower(), [u for u in units if u], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise self.error(position, f"unknown unit {unit!r} for {metric}{hint}", f"one of {known}, or none")

    def check_range(self, position: int, metric: str, value: float) -> None:
        kind = self.metrics.kinds[metric]
        if kind.low is None and value <= 0:
            raise self.error(position, f"{metric} can never be {value:g} or better", "a value above zero")
        if kind.low is not None and kind.high is not None and not kind.low <= value <= kind.high:
            said = f"a value from {kind.low:g} to {kind.high:g} points"
            raise self.error(position, f"{kind.what} of {value:g} points", said)

    def error(self, position: int, what: str, expected: str) -> InputError:
        line = " ".join(self.text.split("\n"))
        return InputError(
            f"{self.metrics.title}: {what}\n    {line}\n    {' ' * position}^",
            expected=expected,
            remedy=f"correct the {self.metrics.title}; separate bounds with commas",
        )


def _check_together(text: str, found: list[Bound], metrics: Metrics) -> None:
    seen: dict[str, Bound] = {}
    for bound in found:
        if bound.metric in seen:
            what = f"{bound.metric} is bounded twice (also {seen[bound.metric].text!r})"
            raise _Reader(text, metrics).error(text.rfind(bound.text), what, "one bound")
        seen[bound.metric] = bound
