"""What else a decision needs: what a looser bound would buy, whether a cascade, an API or the edge would pay, and the
commands that realise the choice.

Takes a recommendation and gives sentences with figures in them. Nothing here decides.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from hasten.plan.sizing import economics, scores
from hasten.plan.sizing.hardware import Device
from hasten.plan.sizing.judge import Assessment
from hasten.plan.sizing.options import Option, options_of
from hasten.plan.sizing.prices import ApiPrice
from hasten.plan.sizing.recommend import Recommendation, ranked_among
from hasten.plan.sizing.shapes import ModelShape
from hasten.plan.sizing.spec import SizingRequest, relaxed

_CHANGED = 0.05  # a cost that changes by less is no news
_SHARED = 2
_ESCALATED = (0.1, 0.3, 0.5)  # shares of requests that go on to the large model
_MONTH_S = economics.HOURS_A_MONTH * 3600


def why(found: Assessment, request: SizingRequest) -> str:
    """What an option stands on: the bound that it is nearest to, and what one replica bears."""
    near = [
        (figure.value / b.value if b.op == "<=" else b.value / max(figure.value, 1e-12), b, figure.value)
        for b in (*request.bounds, *request.quality)
        if (figure := {**found.figures, **found.quality}.get(b.metric)) is not None
    ]
    tightest = max(near, key=lambda one: one[0], default=None)
    bears = f"one replica bears {found.capacity_per_s.value:.3g} requests a second"
    if tightest is None:
        return bears
    return f"{bears}; nearest to its bound is {tightest[1].metric} with {tightest[2]:.3g} ({tightest[1].text})"


# ------------------------------------------------------------------ sensitivity


@dataclass(frozen=True, slots=True)
class Change:
    """What happens to the best choice when one thing is asked differently."""

    what: str
    best: Assessment | None
    usd_ratio: float | None
    sentence: str


def sensitivity(
    found: Recommendation, *, models: Mapping[str, ModelShape], devices: Mapping[str, Device]
) -> tuple[Change, ...]:
    """Every hard bound twice as loose and half as loose, scores five points either way, twice and half the load."""
    request = found.request
    options = _worth_another_look(found, options_of(request, models=models, devices=devices))
    changes = [
        _change(what, ranked_among(options, other, rows=1).best, found.best) for what, other in _variations(request)
    ]
    return tuple(c for c in changes if c is not None)


def _variations(request: SizingRequest) -> Iterator[tuple[str, SizingRequest]]:
    for bound in request.bounds:
        for factor in (2.0, 0.5) if bound.op == "<=" else (0.5, 2.0):
            value = bound.value * factor
            yield f"if {bound.metric} were {value:,g}", relaxed(request, bound.metric, value)
    for bound in request.quality:
        for step in (-5.0, 5.0):
            value = bound.value + step
            if 0.0 < value < 100.0:
                yield f"if {bound.metric} were {value:g}", relaxed(request, bound.metric, value)
    if request.draft is not None:
        for acceptance in (0.5, 0.9):
            yield f"if {acceptance:.0%} of the drafted tokens were right", replace(request, acceptance=acceptance)
    for factor in (2.0, 0.5):
        rate = request.requests_per_s * factor
        yield f"at {rate:g} requests a second", replace(request, requests_per_s=rate)


def _worth_another_look(found: Recommendation, options: Sequence[Option]) -> list[Option]:
    """Options of what is ranked, and of what missed by little."""
    close = {(a.option.shape.name, a.option.device.name) for a in found.ranked}
    close |= {(r.option.shape.name, r.option.device.name) for r in found.ruled_out if r.miss < 1.0}
    return [o for o in options if (o.shape.name, o.device.name) in close]


def _change(what: str, other: Assessment | None, best: Assessment | None) -> Change | None:
    if best is None:
        return None if other is None else Change(what, other, None, f"{what}: {other.option.label} would do")
    if other is None:
        return Change(what, None, None, f"{what}: nothing that was judged would do")
    ratio = other.usd_per_month / best.usd_per_month if best.usd_per_month else 1.0
    same = other.option == best.option
    if abs(ratio - 1.0) < _CHANGED and same:
        return None
    machines = f"{other.machines} {other.option.device.noun}{'s' * (other.machines != 1)} instead of {best.machines}"
    choice = "" if same else f"{other.option.label}, "
    cost = f"{ratio:.2g}x the cost" if abs(ratio - 1.0) >= _CHANGED else "the same cost"
    return Change(what, other, ratio, f"{what}: {choice}{machines}, {cost}")


# ------------------------------------------------------------------ cascades, APIs, edge


@dataclass(frozen=True, slots=True)
class CascadeAdvice:
    """A small model first, the large one for what it does not accept; ``limit`` is the share that may go on, ``usd_at``
    and ``latency_s_at`` what a request costs and takes on average when so many do."""

    small: Assessment
    large: Assessment
    limit: float
    usd_at: Mapping[float, float]
    latency_s_at: Mapping[float, float]
    sentence: str


def cascade_advice(
    found: Recommendation, *, models: Mapping[str, ModelShape], devices: Mapping[str, Device]
) -> CascadeAdvice | None:
    """The cheapest model of half the choice's size or less before it, on the same hardware; ``None`` where none is
    cheaper."""
    best = found.best
    if best is None or best.option.device.kind == "edge" or best.replicas < _SHARED:
        return None  # a machine that is needed anyhow is not saved
    request = replace(
        found.request, quality=(), models=(), parameters=(), draft=None, hardware=(best.option.device.name,)
    )
    small = [
        o for o in options_of(request, models=models, devices=devices)
        if o.shape.total <= best.option.shape.total / 2 and o.precision == best.option.precision and o.devices == 1
        and all(b.metric in scores.of(o, found.request) for b in found.request.quality)
    ]  # fmt: skip
    first = ranked_among(small, request, rows=1).best
    if first is None or _marginal_usd(first) >= _marginal_usd(best):
        return None
    return _cascade(first, best, found.request)


def _cascade(first: Assessment, best: Assessment, request: SizingRequest) -> CascadeAdvice:
    cheap, dear = _marginal_usd(first), _marginal_usd(best)
    near, far = (a.figures["latency_ms"].value / 1e3 for a in (first, best))
    made = {
        rate: economics.cascade([economics.Stage(cheap, near, 1.0 - rate), economics.Stage(dear, far, 1.0)])
        for rate in _ESCALATED
    }
    limit = economics.escalation_limit(cheap, dear)
    broken = [b for b in request.bounds if b.metric == "latency_ms" and not b.holds(1e3 * (near + far))]
    late = f"; those break {broken[0].text}" if broken else ""
    usual = _ESCALATED[1]
    sentence = (
        f"{first.option.shape.title} first pays while fewer than {limit:.0%} of the requests go on to "
        f"{best.option.shape.title}; were it {usual:.0%} (assumed), a request would cost "
        f"{made[usual].cost / dear:.0%} of the large one alone and take {made[usual].latency_s:.2g} s on average, "
        f"{near + far:.2g} s for those that go on{late}"
    )
    return CascadeAdvice(
        first, best, limit, {r: c.cost for r, c in made.items()}, {r: c.latency_s for r, c in made.items()}, sentence
    )


def _marginal_usd(found: Assessment) -> float:
    """What one more request costs where machines can be shared: the price of the capacity that it takes."""
    hourly = found.option.device.usd_per_h.value * found.option.devices
    return hourly / 3600 / found.capacity_per_s.value


@dataclass(frozen=True, slots=True)
class ApiAdvice:
    """An API against the choice; requests a month from which the own machines are cheaper, ``None`` when not even at
    their full capacity."""

    price: ApiPrice
    usd_per_month: float
    break_even_requests: float | None
    sentence: str


def api_advice(found: Recommendation, prices: Sequence[ApiPrice]) -> tuple[ApiAdvice, ...]:
    """What the same load costs at each API."""
    return tuple(_against(price, found) for price in prices)


def _against(price: ApiPrice, found: Recommendation) -> ApiAdvice:
    request, best = found.request, found.best
    each = price.request_usd(request.input_tokens, request.output_tokens)
    mean_per_s = request.requests_per_s * request.mean_share
    month = each * mean_per_s * _MONTH_S
    said = f"{price.name} (prices of {price.date}): {month:,.0f} USD a month"
    if request.privacy or request.offline:
        barred = "the data may not leave" if request.privacy else "there is no network"
        return ApiAdvice(price, month, None, f"{said}, but {barred}")
    if best is None:
        return ApiAdvice(price, month, None, f"{said}; nothing of your own holds")
    even = economics.break_even_per_month(best.usd_per_month, each)
    most = best.replicas * best.capacity_per_s.value * _MONTH_S
    if even > most:
        return ApiAdvice(price, month, None, f"{said}; own machines {best.usd_per_month:,.0f}, dearer even when full")
    return ApiAdvice(
        price, month, even,
        f"{said}; own machines {best.usd_per_month:,.0f}, cheaper from {even:,.0f} requests a month",
    )  # fmt: skip


def edge_advice(found: Recommendation) -> tuple[str, ...]:
    """Edge against cloud, where both are among what was ranked."""
    request = found.request
    edge = [a for a in found.ranked if a.option.device.kind == "edge"]
    cloud = [a for a in found.ranked if a.option.device.kind != "edge"]
    said = []
    if request.privacy:
        said.append("the data may not leave: APIs are out; for machines of your own a rental price stands in")
    if edge and cloud:
        near, far = (min(a.figures["latency_ms"].value for a in side) for side in (edge, cloud))
        where = "on the device" if economics.edge_is_sooner(near, far) else "from the cloud"
        said.append(
            f"an answer comes sooner {where}: {near:,.3g} ms on the device, {far:,.3g} ms over the network "
            f"({request.round_trip_ms:g} ms of it the way)"
        )
        both = [min(a.usd_per_month for a in side) for side in (edge, cloud)]
        said.append(f"users' own devices {both[0]:,.0f} USD a month over three years, rented {both[1]:,.0f}")
    return tuple(said)


def specialist_advice(
    found: Recommendation, *, name: str, score: str, latency_ms: float, device: Device, prices: Sequence[ApiPrice]
) -> tuple[str, ...]:
    """A small model for one task, measured by the user at ``latency_ms`` a request, priced as ``device``, against the
    general choice and the APIs: what a million requests cost."""
    own = device.usd_per_h.value / 3600 * latency_ms / 1e3 / (1.0 - found.request.headroom) * 1e6
    said = [f"{name} ({score}, measured) costs {own:,.3g} USD for a million requests, if priced as {device.name}"]
    rivals = [(p.name, 1e6 * p.request_usd(found.request.input_tokens, found.request.output_tokens)) for p in prices]
    if found.best is not None:
        rivals.append((found.best.option.label, 1e6 * found.best.figures["usd_per_request"].value))
    said += [f"{rival}: {usd:,.3g} USD for the same, {usd / own:,.3g}x" for rival, usd in rivals]
    return tuple(said)


# ------------------------------------------------------------------ commands

# What hasten optimize calls the tasks that it can do.
_OPTIMIZED = {
    "text-classification": "text-classification", "feature-extraction": "feature-extraction",
    "sentence-similarity": "feature-extraction",
}  # fmt: skip


def commands(found: Assessment, request: SizingRequest) -> tuple[str, ...]:
    """How to make the choice with hasten; a comment where it cannot be made yet."""
    shape, task = found.option.shape, _OPTIMIZED.get(request.task)
    if task is None or shape.kind != "encoder":
        return (f"# hasten optimize and serve do not take {request.task} with {shape.title} yet",)
    if found.option.device.kind == "gpu":
        return (f"# hasten optimize measures on CPUs so far: {found.option.device.name} has to be tried by hand",)
    latency = next((b.value for b in request.bounds if b.metric == "latency_ms"), None)
    bounds = ["quality_drop<=1%"]
    if latency is not None and request.percentile in (50, 90, 95, 99):
        way = 0.0 if found.option.device.kind == "edge" else request.round_trip_ms
        bounds.append(f"p{request.percentile:g}_ms<={latency - way:g}")  # waiting comes on top
    own = shape.hub and not shape.source.startswith("http")
    model = shape.hub if own else f"YOUR_{shape.name.upper().replace('-', '_')}"
    words = ["hasten", "optimize", model, "--task", task, "--data", "YOUR_ROWS.csv", "--budget", ", ".join(bounds)]
    note = "" if own else f"   # your checkpoint for the task, fine-tuned from {shape.hub}"
    return (shlex.join(words) + note, "hasten run out/bundle --data YOUR_ROWS.csv   # a server comes with hasten serve")
