"""The user's own measurements: the front of quality and latency, and a curve through it."""

from __future__ import annotations

from collections.abc import Sequence

from hasten.plan.choose import latest
from hasten.plan.sizing.laws import fit_curve
from hasten.records import InputError, Trial

Point = tuple[float, float, Trial]


def front(trials: Sequence[Trial]) -> list[Point]:
    """(p50 in ms, quality, trial) of those that no other beats in both, fastest first."""
    found = [
        (t.figures.latency_ms.p50, t.figures.quality.value, t)
        for t in latest(trials)
        if t.figures.latency_ms and t.figures.quality
    ]
    kept: list[Point] = []
    for point in sorted(found, key=lambda p: (p[0], -p[1])):
        if not kept or point[1] > kept[-1][1]:
            kept.append(point)
    return kept


def notes(trials: Sequence[Trial], latency_ms: float | None) -> tuple[str, ...]:
    """What the front says of quality against latency, and what a bound on it would give."""
    if not trials:
        return ()
    points = front(trials)
    if not points:
        return ("the trials hold no model that was both timed and scored",)
    ms, quality, _ = points[-1]
    said = [f"measured: {len(points)} on the front of quality and latency, the best {quality:.1f} at {ms:.3g} ms"]
    try:
        curve = fit_curve({p[0]: p[1] for p in points})
        said.append(
            f"curve: {curve.ceiling:.1f} - {curve.scale:.3g} ms^-{curve.power:.2f}, off by {curve.rmse:.2f} points"
        )
        if latency_ms is not None:
            said.append(f"predicted by the curve: {curve.quality(latency_ms):.1f} points at {latency_ms:g} ms")
        needed = curve.needed(quality - 1.0)
        if needed is not None:
            said.append(f"predicted by the curve: a point less than the best takes {needed:.3g} ms")
    except InputError as error:
        said.append(str(error).splitlines()[0])
    return tuple(said)


def specialist(trials: Sequence[Trial]) -> Point | None:
    """The fastest of the user's models that is within a point of their best."""
    points = front(trials)
    return next((p for p in points if p[1] >= points[-1][1] - 1.0), None)
