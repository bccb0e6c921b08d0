"""A number that says where it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

Kind = Literal["measured", "predicted", "published", "assumed"]


@dataclass(frozen=True, slots=True)
class Figure:
    """``error`` is the share by which it may be off either way, where that is known; ``source`` a URL, a measurement,
    or the reasoning."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    value: float
    kind: Kind
    source: str
    error: float | None = None


def short(value: float) -> str:
    """Three digits, and no exponent where people read on: 0.0224, 12.5, 2,530."""
    return f"{value:,.0f}" if 100 <= abs(value) < 1e15 else f"{value:.3g}"


def assumed(value: float, why: str) -> Figure:
    """A figure that the user should replace by their own."""
    return Figure(value, "assumed", why)


def predicted(value: float, source: str, *, error: float | None = None) -> Figure:
    """What a model of the hardware or a law says."""
    return Figure(value, "predicted", source, error)
