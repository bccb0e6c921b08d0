"""Does an option hold the bounds, with how many machines, and at what cost?

Takes an option and the request, gives an :class:`Assessment`, or a :class:`~hasten.plan.sizing.options.Ruling` that
says which bound it breaks, by how much, and what would help. Latencies are those of the request's percentile at the
load of one replica.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from hasten.plan.bounds import Bound
from hasten.plan.sizing import costs, economics, scores
from hasten.plan.sizing.figures import Figure, predicted, short
from hasten.plan.sizing.load import LATENCIES, Replica, replica_of
from hasten.plan.sizing.memory import Memory
from hasten.plan.sizing.options import LOAD, REACH, SIZE, SPEED, WHOLE, Option, Ruling
from hasten.plan.sizing.spec import SCORES, SizingRequest

_MOST_MACHINES = 10_000_000
_TOGETHER = 64


@dataclass(frozen=True, slots=True)
class Assessment:
    """What it takes to serve the request. ``figures`` are keyed by the names of bounds; ``capacity_per_s`` is what one
    replica bears within the latency bounds, ``load`` the share of its time that it is busy; ``missed`` are preferred
    bounds that do not hold. On the edge every user has a replica."""

    option: Option
    replicas: int
    capacity_per_s: Figure
    load: float
    running: float
    asked_per_s: float
    memory: Memory
    largest_batch: int
    largest_context: int
    figures: Mapping[str, Figure]
    quality: Mapping[str, Figure]
    missed: tuple[str, ...]

    @property
    def machines(self) -> int:
        return self.replicas * self.option.devices

    @property
    def used(self) -> float:
        """The share of what it bears within the bounds that is asked of it."""
        return self.asked_per_s / (self.replicas * self.capacity_per_s.value)

    @property
    def usd_per_month(self) -> float:
        return self.figures["usd_per_month"].value


@dataclass(frozen=True)
class Prospect:
    """An option that breaks no bound by itself. ``at_least`` is what it must miss, cost or take at the least: preferred
    bounds, then the unit that the setting orders by (US dollars a month; machines, then those; milliseconds). It is
    known before any queue is solved."""

    option: Option
    request: SizingRequest
    replica: Replica
    quality: Mapping[str, Figure]
    at_least: tuple[float, ...]

    @cached_property
    def judged(self) -> Assessment | Ruling:
        """After the first look the queues: the fewest replicas with which every hard bound holds, or why there are
        none."""
        option, request = self.option, self.request
        found = _replicas(option, request, self.replica)
        if isinstance(found, Ruling):
            return found
        if found * option.devices > _MOST_MACHINES:
            reason = f"{found * option.devices:,} of {option.device.name} would be needed"
            miss = found * option.devices / _MOST_MACHINES
            return Ruling(option, "machines", reason, miss, "a smaller model or faster hardware", LOAD)
        assessed = _assessed(self, found)
        return _beyond_bounds(assessed, request) or assessed


def looked_at(option: Option, request: SizingRequest) -> Prospect | Ruling:
    """A first look: reach, scores, memory, and one request alone."""
    quality = scores.of(option, request)
    ruling = _out_of_reach(option, request) or scores.broken(option, request, quality)
    ruling = ruling or _too_large(option, request)
    if ruling is not None:
        return ruling
    replica = replica_of(option, request)
    bare = replica.bare_ms()
    ruling = _too_slow(replica, bare)
    if ruling is not None:
        return ruling
    least = _replicas_at(option, request, replica.ceiling_per_s)
    money = costs.usd_per_month(option, least)
    at_least: dict[str, tuple[float, ...]] = {
        "edge": (bare["latency_ms"],), "cloud": (money,),
        "enterprise": (float(least * option.devices), money),
    }  # fmt: skip
    floors = {**bare, "usd_per_month": money, "machines": float(least * option.devices)}
    missed = sum(_surely_missed(bound, quality, floors) for bound in request.preferred)
    return Prospect(option, request, replica, quality, (float(missed), *at_least[request.setting]))


def judge(option: Option, request: SizingRequest) -> Assessment | Ruling:
    """Both looks at one option."""
    found = looked_at(option, request)
    return found if isinstance(found, Ruling) else found.judged


def _surely_missed(bound: Bound, quality: Mapping[str, Figure], floors: Mapping[str, float]) -> bool:
    """Does a score, or the least that something can be, already break this preferred bound?"""
    if bound.metric in SCORES:
        return bound.metric not in quality or not bound.holds(quality[bound.metric].value)
    return bound.metric in floors and not bound.holds(floors[bound.metric])


# ------------------------------------------------------------------ how many


def _replicas_at(option: Option, request: SizingRequest, rate: float) -> int:
    """Of a capacity of ``rate`` each: one a user on the edge, else as many as the load takes with its headroom."""
    if option.device.kind == "edge":
        return max(1, math.ceil(request.requests_per_s * 3600 / request.edge_requests_per_h))
    return economics.machines_for(request.requests_per_s, rate, request.headroom)


def _replicas(option: Option, request: SizingRequest, replica: Replica) -> int | Ruling:
    if option.device.kind != "edge":
        found = replica.fewest(request.requests_per_s, request.headroom)
        return _busy(option, replica) if found is None else found
    bears = replica.most_per_s * 3600
    if bears == 0.0:
        return _busy(option, replica)
    if bears < request.edge_requests_per_h:
        reason = f"one device bears {bears:.3g} requests an hour, its user sends {request.edge_requests_per_h:g}"
        miss = request.edge_requests_per_h / bears - 1
        return Ruling(option, "load", reason, miss, "a smaller model, or fewer requests", LOAD)
    return _replicas_at(option, request, bears)


# ------------------------------------------------------------------ what rules an option out


def _out_of_reach(option: Option, request: SizingRequest) -> Ruling | None:
    """Units that the device does not have; a network that is not there."""
    device = option.device
    if not device.supports(option.precision):
        reason = f"{device.name} has no {option.precision}"
        return Ruling(option, "precision", reason, math.inf, "another precision", REACH)
    silent = [b for b in request.bounds if b.metric in LATENCIES[:2] and option.shape.kind == "encoder"]
    if silent:
        reason = f"{option.shape.title} gives no tokens, so it has no {silent[0].metric}"
        return Ruling(option, silent[0].metric, reason, math.inf, "a bound on latency_ms", REACH)
    if request.offline and device.kind != "edge" and request.setting != "enterprise":
        remedy = "an edge device, or --setting enterprise for machines in the house"
        return Ruling(option, "offline", f"there is no network to reach {device.name}", math.inf, remedy, REACH)
    return None


def _too_large(option: Option, request: SizingRequest) -> Ruling | None:
    shape, place = option.shape, option.place(request)
    tokens = {"encoder": request.input_tokens, "encoder-decoder": request.output_tokens}.get(
        shape.kind, request.context
    )
    if shape.max_context and tokens > shape.max_context:
        reason = f"{shape.title} takes {shape.max_context:,} tokens, {tokens:,.0f} are asked"
        remedy = "shorter requests, or a model with a longer context"
        return Ruling(option, "context", reason, tokens / shape.max_context - 1, remedy, SIZE)
    held = place.needed(context=request.context, sequences=1).total
    if held <= place.room_bytes:
        return None
    reason = (
        f"{held / 1e9:.1f} GB are needed and {place.room_bytes / 1e9:.1f} GB may be used on "
        f"{option.devices} x {option.device.name}"
    )
    return Ruling(option, "memory", reason, held / place.room_bytes - 1, _what_fits(option, request, held), SIZE)


def _what_fits(option: Option, request: SizingRequest, held: float) -> str:
    """Fewer bits, more devices, or a smaller model, whichever is least."""
    place = option.place(request)
    few = replace(place, precision="int4").needed(context=request.context, sequences=1).total
    if few <= place.room_bytes < held and option.precision != "int4":
        return "weights in int4"
    bounded = place.room_bytes < option.device.usable_bytes * option.devices
    count = math.ceil(few / option.device.usable_bytes)
    if option.device.kind == "gpu" and not bounded and count <= _TOGETHER:
        return f"{count} of them together with weights in int4"
    return f"a shorter context, or a model of {place.room_bytes / few:.2g} times its size"


def _too_slow(replica: Replica, bare: Mapping[str, float]) -> Ruling | None:
    """Bounds that one request alone breaks, with nothing else on the device."""
    option, request = replica.option, replica.request
    for bound in request.bounds:
        if bound.metric not in bare or bound.holds(bare[bound.metric]):
            continue
        value = bare[bound.metric]
        way = 0.0 if bound.metric == "tpot_ms" else 1e3 * replica.network_s
        reason = f"{bound.metric} is {short(value)} ms for one request alone and {bound.text} is asked"
        remedy = "a smaller model, fewer bits, or more bandwidth"
        if way >= bound.value:
            reason += f"; the network alone takes {way:g} ms"
            remedy = "a shorter way (--network-ms), or a device at the user's place,"
        elif option.draft is None:
            reason += "; " + _physics(replica.at_the_peaks().bare_ms()[bound.metric], bound.value, way)
        return Ruling(option, bound.metric, reason, value / bound.value - 1, remedy, SPEED)
    return None


def _physics(floor_ms: float, bound_ms: float, way_ms: float) -> str:
    """What no runtime can pass: the hardware's peaks, and the way to the user."""
    way = f", {way_ms:g} ms of it the network" if way_ms else ""
    if floor_ms > bound_ms:
        return f"even at its peak the hardware takes {short(floor_ms)} ms{way}"
    return f"its peaks would allow {short(floor_ms)} ms{way}"


def _busy(option: Option, replica: Replica) -> Ruling:
    """One request alone would hold, but the percentile does not even at a small load: lengths and luck vary."""
    request = replica.request
    flow = replica.flow(replica.ceiling_per_s / 4096)
    times = {} if flow is None else replica.latencies(flow)
    late = [(times[b.metric].value / b.value - 1, b) for b in replica.bounds if b.metric in times]
    miss, bound = max(late, key=lambda one: one[0], default=(math.inf, None))
    if bound is None:
        return Ruling(option, "load", "requests pile up at any load", math.inf, "a smaller model", LOAD)
    reason = (
        f"{bound.metric} is {short(times[bound.metric].value)} ms at p{request.percentile:g} even at a small load, "
        f"{bound.text} is asked"
    )
    remedy = "a looser bound, a lower percentile, or more speed"
    return Ruling(option, bound.metric, reason, max(miss, 0.0), remedy, LOAD)


def _beyond_bounds(found: Assessment, request: SizingRequest) -> Ruling | None:
    """Bounds on what is known only of the whole: money, energy, machines."""
    for bound in request.bounds:
        figure = found.figures.get(bound.metric)
        if figure is not None and not bound.holds(figure.value):
            reason = f"{bound.metric} would be {figure.value:,.4g}, {bound.text} is asked"
            remedy = "a smaller model, fewer bits, or cheaper hardware"
            return Ruling(found.option, bound.metric, reason, figure.value / bound.value - 1, remedy, WHOLE)
    return None


# ------------------------------------------------------------------ what it takes


def _assessed(prospect: Prospect, replicas: int) -> Assessment:
    option, request, replica = prospect.option, prospect.request, prospect.replica
    own = request.edge_requests_per_h / 3600 if option.device.kind == "edge" else request.requests_per_s / replicas
    flow = replica.flow(request.requests_per_s, replicas) if replica.pooled else replica.flow(own)
    assert flow is not None
    place = option.place(request)
    memory = place.needed(context=request.context, sequences=max(1.0, flow.crowd))
    figures = {
        **replica.latencies(flow),
        **costs.costs_of(option, request, replicas=replicas, own=own, flow=flow),
        "memory_bytes": predicted(memory.total, "weights, cache, activations and runtime at the usual peak"),
    }
    known = {**figures, **prospect.quality}
    # What nobody knows is missed, too.
    missed = tuple(b.text for b in request.preferred if b.metric not in known or not b.holds(known[b.metric].value))
    capacity = predicted(
        own / flow.load if replica.pooled else replica.most_per_s, replica.source, error=replica.engine.error
    )
    return Assessment(
        option=option, replicas=replicas, capacity_per_s=capacity,
        load=flow.load, running=flow.running, asked_per_s=own * replicas, memory=memory,
        largest_batch=place.largest_batch(context=request.context), largest_context=place.largest_context(),
        figures=figures, quality=prospect.quality, missed=missed,
    )  # fmt: skip
