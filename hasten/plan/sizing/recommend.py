"""Which option to deploy: all are judged, the ones that hold are ranked, the others say why not.

Takes a request and the catalogues, gives a :class:`Recommendation`. The setting orders what holds: money in a cloud,
the fewest machines to run in an enterprise, latency on the edge; what was only preferred counts before that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from hasten.plan.sizing.hardware import Device
from hasten.plan.sizing.judge import Assessment, Prospect, looked_at
from hasten.plan.sizing.options import Option, Ruling, options_of
from hasten.plan.sizing.shapes import ModelShape
from hasten.plan.sizing.spec import SizingRequest

SHOWN = 8
_TRIED = 40
_A_MODEL = 2  # rows that one model may take in the list


@dataclass(frozen=True, slots=True)
class Recommendation:
    """``ranked`` best first, one for a model on a device; ``best_score`` the best that holds in the first score asked
    for, whatever it costs; ``ruled_out`` the closest miss of every device and every model on which or with which
    nothing holds; ``considered`` how many options were judged."""

    request: SizingRequest
    ranked: tuple[Assessment, ...]
    best_score: Assessment | None
    ruled_out: tuple[Ruling, ...]
    considered: int

    @property
    def best(self) -> Assessment | None:
        return self.ranked[0] if self.ranked else None


def recommend(
    request: SizingRequest, *, models: Mapping[str, ModelShape], devices: Mapping[str, Device],
    tell: Callable[[int, int], None] | None = None,
) -> Recommendation:  # fmt: skip
    """Judge what the request leaves. ``tell`` hears how many of how many options have had their first look,
    then how many of what is left were judged."""
    return ranked_among(options_of(request, models=models, devices=devices), request, tell=tell)


def ranked_among(
    options: Sequence[Option], request: SizingRequest, *, rows: int = SHOWN,
    tell: Callable[[int, int], None] | None = None,
) -> Recommendation:  # fmt: skip
    """The same for given options. All get a first look; queues are solved for the most promising, less those of a model
    on a device that has done better already, until no other can be among the best ``rows``."""
    held: list[Assessment] = []
    rulings: list[Ruling] = []
    prospects: list[Prospect] = []
    for number, option in enumerate(options, start=1):
        first = looked_at(option, request)
        rulings.append(first) if isinstance(first, Ruling) else prospects.append(first)
        if tell is not None:
            tell(number, len(options))
    for number, prospect in enumerate(sorted(prospects, key=lambda p: p.at_least), start=1):
        if tell is not None:
            tell(number, len(prospects))
        better = [a for a in held if _measure(a, request) < prospect.at_least]
        if len(_few(_ordered(better, request), rows)) == rows:
            break
        if _pair(prospect.option) in {_pair(a.option) for a in better}:
            continue
        found = prospect.judged
        rulings.append(found) if isinstance(found, Ruling) else held.append(found)
    ranked = _few(_ordered(held, request), rows)
    top = _best_score(prospects, request) if rows > 1 else None
    return Recommendation(request, ranked, top, _closest(rulings, [p.option for p in prospects]), len(options))


def _best_score(prospects: Sequence[Prospect], request: SizingRequest) -> Assessment | None:
    """Tried from the best score down, and among equals from the cheapest up."""
    if not request.quality:
        return None
    bound = request.quality[0]
    sign = 1.0 if bound.op == "<=" else -1.0
    tried = sorted(prospects, key=lambda p: (sign * p.quality[bound.metric].value, p.at_least))[:_TRIED]
    return next((a for p in tried if isinstance(a := p.judged, Assessment)), None)


def _measure(found: Assessment, request: SizingRequest) -> tuple[float, ...]:
    """What ``at_least`` bounds from below: wishes come first."""
    money: tuple[float, ...] = (found.usd_per_month,)
    own = {"edge": (found.figures["latency_ms"].value,), "enterprise": (float(found.machines), *money), "cloud": money}
    return (float(len(found.missed)), *own[request.setting])


def _ordered(held: Iterable[Assessment], request: SizingRequest) -> list[Assessment]:
    """The best first; ties go to the better model, then to the smaller one."""

    def order(found: Assessment) -> tuple[float, ...]:
        asked = [found.quality[b.metric].value * (1.0 if b.op == "<=" else -1.0) for b in request.quality[:1]]
        energy = [found.figures["energy_j"].value] if request.setting == "edge" else []
        return (*_measure(found, request), *energy, *asked, found.option.shape.total)

    return sorted(held, key=order)


def _pair(option: Option) -> tuple[str, str]:
    """Model and device: one row each."""
    return option.shape.name, option.device.name


def _few(ordered: Iterable[Assessment], most: int) -> tuple[Assessment, ...]:
    """The best of every (model, device), so many of a model."""
    seen: set[tuple[str, str]] = set()
    rows: dict[str, int] = {}
    kept = []
    for found in ordered:
        model, device = _pair(found.option)
        if (model, device) in seen or rows.get(model, 0) >= _A_MODEL:
            continue
        seen.add((model, device))
        rows[model] = rows.get(model, 0) + 1
        kept.append(found)
    return tuple(kept[:most])


def _closest(rulings: Sequence[Ruling], prospects: Sequence[Option]) -> tuple[Ruling, ...]:
    """For every device on which nothing holds, and every model that holds nowhere, the option that misses by least."""
    out = {r.option.label for r in rulings}
    good = [o for o in prospects if o.label not in out]
    good_devices, good_models = {o.device.name for o in good}, {o.shape.name for o in good}
    nearest: dict[tuple[str, str], Ruling] = {}
    for ruling in sorted(rulings, key=_distance):
        device, model = ruling.option.device.name, ruling.option.shape.name
        if device not in good_devices:
            nearest.setdefault(("device", device), ruling)
        if model not in good_models:
            nearest.setdefault(("model", model), ruling)
    unique = {id(r): r for r in nearest.values()}
    return tuple(sorted(unique.values(), key=_distance))


def _distance(ruling: Ruling) -> tuple[int, float]:
    """Small for an option that nearly holds: whoever passed more checks missed by less, whatever the shares say."""
    return -ruling.check, ruling.miss
