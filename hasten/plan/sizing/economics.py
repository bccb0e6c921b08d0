"""What it costs: machines, money, energy, cascades, buying against building, edge against cloud.

Takes rates, prices and times as plain numbers, gives plain numbers; the assumptions that go in are Figures with their
sources, all editable.

Sources: $/Mtok = price an hour x 1e6 / (3600 x tokens a second); expected cost of a cascade
sum_i c_i prod_{j<i} (1 - accept_j) (Chen et al. 2023, "FrugalGPT").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hasten.plan.sizing.figures import assumed
from hasten.records import InputError

HOURS_A_MONTH = 730.0
HEADROOM = assumed(0.3, "machines are planned for 70 % of what they could do: peaks, failures, deployments")
PUE = assumed(1.54, "power that a data centre draws for a watt of computing (Uptime Institute, survey of 2025)")
CARBON_G_KWH = assumed(458.0, "the world's mean grid in 2025 (Ember, Global Electricity Review 2026)")
IDLE_SHARE = assumed(0.35, "an idle accelerator or server draws about a third of its full power")


def usd_per_million(usd_per_h: float, per_second: float) -> float:
    """Of a million tokens or requests at a rate."""
    return usd_per_h * 1e6 / (3600.0 * per_second)


def machines_for(rate: float, capacity: float, headroom: float) -> int:
    """Replicas so that each works at 1 - headroom of its capacity (both in requests a second), at least one."""
    return max(1, math.ceil(rate / (capacity * (1.0 - headroom)) - 1e-9))


def energy_j(watts: float, *, busy_s: float, load: float, idle_share: float) -> float:
    """Joules that one request takes: its busy seconds at full power, and its part of the idle time at this load."""
    idle_s = busy_s * (1.0 - load) / max(load, 1e-9)
    return watts * (busy_s + idle_share * idle_s)


def carbon_g(joules: float, *, g_per_kwh: float) -> float:
    """Grams of CO2."""
    return joules / 3.6e6 * g_per_kwh


@dataclass(frozen=True, slots=True)
class Stage:
    """A model of a cascade: what a request costs and takes there, and the share of its answers that are accepted."""

    cost: float
    latency_s: float
    accept: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.accept <= 1.0 or self.cost < 0 or self.latency_s < 0:
            raise InputError(
                f"a stage that accepts {self.accept:g} at a cost of {self.cost:g} in {self.latency_s:g} s",
                expected="a share from 0 to 1, no negative cost or time", remedy="correct the stage",
            )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cascade:
    """Expected cost and latency of a request."""

    cost: float
    latency_s: float


def cascade(stages: Sequence[Stage]) -> Cascade:
    """The expectation over all requests; the last stage accepts everything that reaches it."""
    reach, cost, latency = 1.0, 0.0, 0.0
    for stage in stages:
        cost += reach * stage.cost
        latency += reach * stage.latency_s
        reach *= 1.0 - stage.accept
    return Cascade(cost, latency)


def escalation_limit(small_cost: float, large_cost: float) -> float:
    """Two stages are cheaper than the large one alone while fewer than this share escalate: 1 - c1 / c2."""
    return max(0.0, 1.0 - small_cost / large_cost)


def break_even_per_month(own_usd_month: float, api_usd_request: float) -> float:
    """Requests a month from which own machines are cheaper than an API."""
    return own_usd_month / api_usd_request if api_usd_request > 0 else math.inf


def edge_is_sooner(edge_ms: float, cloud_ms: float) -> bool:
    """Does the answer come sooner from the device than over the network (whose way is in ``cloud_ms``)?"""
    return edge_ms <= cloud_ms
