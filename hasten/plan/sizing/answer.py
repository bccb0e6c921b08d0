"""The whole answer of ``hasten size``: recommendation, what else a decision needs, and doubts.

Takes the request and the catalogues; knows no files and prints nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hasten.ledger import plain
from hasten.plan.sizing import advice, curves, economics, laws, roofline, scores
from hasten.plan.sizing.advice import ApiAdvice, CascadeAdvice, Change
from hasten.plan.sizing.curves import Line
from hasten.plan.sizing.figures import Figure, assumed, short
from hasten.plan.sizing.hardware import Device
from hasten.plan.sizing.judge import Assessment
from hasten.plan.sizing.options import Ruling
from hasten.plan.sizing.prices import ApiPrice
from hasten.plan.sizing.recommend import Recommendation, recommend
from hasten.plan.sizing.shapes import ModelShape, readable
from hasten.plan.sizing.spec import SizingRequest


@dataclass(frozen=True, slots=True)
class LawRow:
    """What scaling laws say of a model at its training tokens: losses, the tokens that suit its size, the size that
    would suit its training's computation; ``stretched`` says by how far the precision law is out of its range."""

    model: str
    tokens: float
    loss: Mapping[str, float]
    optimal_tokens: float
    optimal_size: float
    rounding_nats: Mapping[str, float]
    stretched: str | None


@dataclass(frozen=True, slots=True)
class Checked:
    """A point that was measured on this host beside its prediction."""

    what: str
    unit: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1.0


@dataclass(frozen=True, slots=True)
class Sizing:
    """See :func:`answer`. ``checked`` and ``measured_notes`` come from this host's and the user's own measurements."""

    recommendation: Recommendation
    changes: tuple[Change, ...]
    cascade: CascadeAdvice | None
    apis: tuple[ApiAdvice, ...]
    edge: tuple[str, ...]
    laws: tuple[LawRow, ...]
    commands: tuple[str, ...]
    warnings: tuple[str, ...]
    by_load: tuple[Line, ...]
    by_context: tuple[Line, ...]
    assumptions: tuple[tuple[str, Figure], ...]
    checked: tuple[Checked, ...] = ()
    measured_notes: tuple[str, ...] = ()

    @property
    def request(self) -> SizingRequest:
        return self.recommendation.request

    @property
    def sentence(self) -> str:
        """The answer in one line."""
        best = self.recommendation.best
        if best is None:
            near = self.recommendation.ruled_out[:1]
            why = (
                f"; the nearest is {near[0].option.label}: {near[0].reason}. {near[0].remedy} would help"
                if near
                else ""
            )
            return f"NOTHING HOLDS all bounds ({self.recommendation.considered} options judged){why}"
        money = f"{best.usd_per_month:,.0f} USD a month"
        own = " (one a user)" if best.option.device.kind == "edge" else ""
        many = f"{best.machines:,} {best.option.device.noun}{'s' * (best.machines != 1)}{own}"
        return f"DEPLOY {best.option.label}: {many}, {money}, {best.used:.0%} of the capacity in use (predicted)"

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``: every figure with its value, kind, source and error."""
        found = self.recommendation
        return {
            "sentence": self.sentence, "request": plain(self.request), "considered": found.considered,
            "ranked": [{**_assessment(a), "why": advice.why(a, self.request)} for a in found.ranked],
            "best_score": None if found.best_score is None else _assessment(found.best_score),
            "ruled_out": [_ruling(r) for r in found.ruled_out],
            "sensitivity": [{"what": c.what, "usd_ratio": c.usd_ratio, "sentence": c.sentence} for c in self.changes],
            "cascade": None if self.cascade is None else {
                "small": self.cascade.small.option.label, "large": self.cascade.large.option.label,
                "escalation_limit": self.cascade.limit, "usd_per_request_at": plain(self.cascade.usd_at),
                "latency_s_at": plain(self.cascade.latency_s_at),
                "sentence": self.cascade.sentence,
            },
            "apis": [
                {"name": a.price.name, "date": a.price.date, "usd_per_month": a.usd_per_month,
                 "break_even_requests": a.break_even_requests, "sentence": a.sentence}
                for a in self.apis
            ],
            "edge": list(self.edge), "laws": [plain(row) for row in self.laws], "commands": list(self.commands),
            "checked": [{**plain(c), "error": c.error} for c in self.checked],
            "measured_notes": list(self.measured_notes), "warnings": list(self.warnings),
            "by_load": plain(self.by_load), "by_context": plain(self.by_context),
            "assumptions": {name: plain(figure) for name, figure in self.assumptions},
        }  # fmt: skip


def answer(
    request: SizingRequest, *, models: Mapping[str, ModelShape], devices: Mapping[str, Device],
    prices: Sequence[ApiPrice] = (), checked: Sequence[Checked] = (), notes: Sequence[str] = (),
    tell: Callable[[int, int], None] | None = None,
) -> Sizing:  # fmt: skip
    """Judge, rank, and look around the choice."""
    found = recommend(request, models=models, devices=devices, tell=tell)
    best = found.best
    return Sizing(
        recommendation=found,
        changes=advice.sensitivity(found, models=models, devices=devices),
        cascade=advice.cascade_advice(found, models=models, devices=devices),
        apis=advice.api_advice(found, prices),
        edge=advice.edge_advice(found),
        laws=_laws(found),
        commands=advice.commands(best, request) if best else (),
        warnings=tuple(_doubts(found)),
        by_load=curves.by_load(found.ranked, request),
        by_context=curves.by_context(found.ranked, request),
        assumptions=tuple(_assumptions(best, request)) if best else (),
        checked=tuple(checked),
        measured_notes=tuple(notes),
    )


def _laws(found: Recommendation) -> tuple[LawRow, ...]:
    """For every decoder in the list whose training tokens are known or given."""
    rows = {}
    for assessed in found.ranked:
        shape = assessed.option.shape
        tokens = shape.tokens_trained or found.request.tokens_trained
        if shape.kind == "decoder" and tokens and shape.name not in rows:
            rows[shape.name] = _law_row(shape, tokens)
    return tuple(rows.values())


def _law_row(shape: ModelShape, tokens: float) -> LawRow:
    inner = max(1.0, shape.total - shape.embedding_weights)
    law = laws.PRECISION_LAW
    return LawRow(
        model=shape.title, tokens=tokens,
        loss={name: laws.LOSS_LAWS[name].loss(shape.total, tokens) for name in ("chinchilla", "epoch")},
        optimal_tokens=laws.LOSS_LAWS["epoch"].tokens_for(shape.total),
        optimal_size=laws.LOSS_LAWS["epoch"].optimal(6 * shape.total * tokens)[0],
        rounding_nats={f"int{bits}": law.rounded(inner, tokens, bits) for bits in (8, 4, 3)},
        stretched=laws.outside(laws.PRECISION_RANGE, parameters=inner, tokens=tokens),
    )  # fmt: skip


def _assumptions(best: Assessment, request: SizingRequest) -> Iterator[tuple[str, Figure]]:
    """What the choice's times, memory, scores, energy and machines rest on, each to be replaced by the user's own."""
    option, device = best.option, best.option.device
    reach = device.reached
    if not (device.fits and option.shape.kind == "encoder"):
        yield "share of the arithmetic peak", reach.compute
        yield "share of the bandwidth", reach.bandwidth
        yield "seconds of a pass besides", reach.pass_s
        yield "seconds of a layer besides", reach.layer_s
        yield "bytes of the runtime", device.runtime
    if option.devices > 1:
        yield "bytes a second between devices", device.link_bytes_s or roofline.DEFAULT_LINK
        yield "seconds of a small all-reduce", roofline.LINK_LATENCY_S
    yield "share of the memory that is used", device.usable_share
    yield f"points that {option.precision} costs", scores.bits_cost(option, request)
    edge = device.kind == "edge"
    given = {"g CO2 a kWh": (request.carbon_g_kwh, economics.CARBON_G_KWH)}
    if not edge:
        given |= {
            "headroom": (request.headroom, economics.HEADROOM), "PUE": (request.pue, economics.PUE),
            "power of an idle machine": (request.idle_share, economics.IDLE_SHARE),
        }  # fmt: skip
    for name, (value, usual) in given.items():
        yield name, usual if value == usual.value else Figure(value, "assumed", "given by you")
    yield "mean load as a share of the rate", assumed(request.mean_share, "1: this load runs all month")
    if option.draft:
        yield "chance that a drafted token is right", assumed(request.acceptance, "depends on draft and texts: measure")
        yield "tokens drafted at a time", assumed(float(request.drafted), "given, or usual")
    yield "squared variation of lengths", assumed(request.length_scv, "0: all alike, 1: as an exponential distribution")
    if device.kind != "edge":
        yield "round trip of the network, ms", assumed(request.round_trip_ms, "25 to a near cloud, 1 within a house")


def _doubts(found: Recommendation) -> list[str]:
    """What a reader should know before believing it."""
    best = found.best
    if best is None:
        return []
    device, said = best.option.device, []
    if not found.request.quality and not found.request.models and not found.request.parameters:
        said.append("no score was asked for, so the smallest model that is fast enough wins: give --quality")
    if not (device.fits and best.option.shape.kind == "encoder"):
        said.append(
            "latencies are predicted from a roofline with assumed shares of the peaks: expect them within 50 % "
            "either way, and measure before buying (hasten optimize, or --this-host)"
        )
    for name, figure in (("price", device.usd_per_h), ("bandwidth", device.bandwidth_bytes_s)):
        if figure.kind == "assumed":
            said.append(f"the {name} of {device.name} is assumed: {figure.source}")
    for bound in found.request.quality:
        figure = best.quality[bound.metric]
        if figure.kind != "published":
            said.append(f"{bound.metric} {figure.value:.1f} is {figure.kind}: {figure.source}")
        unsure = max((figure.error or 0.0) * figure.value, scores.bits_cost(best.option, found.request).value)
        if abs(figure.value - bound.value) < unsure:
            said.append(
                f"{bound.text} holds by {abs(figure.value - bound.value):.1f} points, less than what is assumed"
            )
    for bound in found.request.bounds:
        timed = best.figures.get(bound.metric)
        if timed is not None and timed.error and timed.value * (1 + timed.error) > bound.value:
            said.append(f"{bound.text} holds with {short(timed.value)}, which is within the error of the prediction")
    tokens = best.option.shape.tokens_trained or found.request.tokens_trained
    if best.option.shape.kind == "decoder" and tokens:
        stretched = laws.outside(laws.LOSS_RANGE, parameters=best.option.shape.total, tokens=tokens)
        if stretched:
            said.append(f"the loss laws are stretched: {stretched}")
    return said


def _figures(figures: Mapping[str, Figure]) -> dict[str, Any]:
    return {name: plain(figure) for name, figure in figures.items()}


def _assessment(found: Assessment) -> dict[str, Any]:
    option = found.option
    memory = {name: plain(getattr(found.memory, name)) for name in ("weights", "cache", "activations", "runtime")}
    return {
        "model": option.shape.name, "title": option.shape.title, "hub": option.shape.hub,
        "licence": option.shape.licence, "parameters": option.shape.total, "size": readable(option.shape.total),
        "features": list(option.features), "techniques": list(option.techniques), "precision": option.precision,
        "draft": option.draft.name if option.draft else None, "hardware": option.device.name,
        "devices": option.devices, "replicas": found.replicas, "machines": found.machines,
        "capacity_per_s": plain(found.capacity_per_s), "load": found.load, "running": found.running, "used": found.used,
        "largest_batch": found.largest_batch, "largest_context": found.largest_context,
        "figures": _figures(found.figures), "quality": _figures(found.quality), "memory": memory,
        "missed": list(found.missed),
    }  # fmt: skip


def _ruling(found: Ruling) -> dict[str, Any]:
    return {
        "option": found.option.label, "bound": found.bound, "reason": found.reason, "remedy": found.remedy,
        "miss": found.miss if math.isfinite(found.miss) else None,
    }  # fmt: skip
