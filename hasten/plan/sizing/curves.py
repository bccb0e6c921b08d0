"""What the page draws: time against load, memory against context, for the best few. Plain numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hasten.plan.sizing.judge import Assessment
from hasten.plan.sizing.load import replica_of
from hasten.plan.sizing.spec import SizingRequest

_LOADS = [n / 24 for n in range(1, 24)]
_CURVES = 4
_SHORTEST = 64


@dataclass(frozen=True, slots=True)
class Line:
    """Points of one option; ``room`` is a limit that y must stay below, where there is one."""

    label: str
    points: tuple[tuple[float, float], ...]
    room: float | None = None


def by_load(ranked: Sequence[Assessment], request: SizingRequest) -> tuple[Line, ...]:
    """(requests a second of one replica, the percentile's answer in ms) up to where requests pile up."""
    made = []
    for assessed in ranked[:_CURVES]:
        replica = replica_of(assessed.option, request)
        flows = [(share * replica.ceiling_per_s, replica.flow(share * replica.ceiling_per_s)) for share in _LOADS]
        points = [(rate, replica.latencies(flow)["latency_ms"].value) for rate, flow in flows if flow is not None]
        made.append(Line(assessed.option.label, tuple(points)))
    return tuple(made)


def by_context(ranked: Sequence[Assessment], request: SizingRequest) -> tuple[Line, ...]:
    """(tokens of one sequence, GB) up to what the model takes, with the room that there is."""
    made = []
    for assessed in ranked[:_CURVES]:
        place = assessed.option.place(request)
        longest = assessed.option.shape.max_context or int(4 * request.context)
        lengths = [length for n in range(14, -1, -1) if (length := longest / 2**n) >= _SHORTEST] or [float(longest)]
        points = [(length, place.needed(context=length, sequences=1).total / 1e9) for length in lengths]
        made.append(Line(assessed.option.label, tuple(points), place.room_bytes / 1e9))
    return tuple(made)
