"""How long requests wait: percentiles under load, not means.

Takes arrival and service times, gives distributions: M/G/c, one request at a time on each of c servers. The chance to
wait is Erlang's C, the mean wait Kimura's (1994) between M/M/c and M/D/c (Cosmetatos 1975), and the wait of those who
wait a gamma distribution with Whitt's (1993) variance. Servers that work on several requests at once are in
:mod:`hasten.plan.sizing.batching`.

Legend: lambda arrivals a second, rho load, c replicas, W wait, S service.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from hasten.records import InputError

Vector = npt.NDArray[Any]

MIX = 64  # quantiles of a service that a response is mixed from
_NEVER = 1e-12  # so small a chance to wait is none
_CAP = 0.24  # of Cosmetatos' correction at low loads (Whitt 1993)


@dataclass(frozen=True, slots=True)
class Service:
    """Mean of the service time in seconds, and its squared coefficient of variation."""

    mean_s: float
    scv: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.mean_s < math.inf or self.scv < 0:
            raise InputError(
                f"a service of {self.mean_s} s with a squared variation of {self.scv}", expected="a time above zero",
                remedy="check the lengths and the hardware",
            )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wait:
    """A wait: nobody waits with chance 1 - ``chance``; the others wait a gamma time of this mean and variation."""

    chance: float
    mean_s: float
    scv: float

    def quantile(self, share: float) -> float:
        """The wait that ``share`` of the requests do not exceed."""
        from scipy.special import gammainccinv

        if share <= 1.0 - self.chance or self.mean_s == 0.0:
            return 0.0
        return float(gammainccinv(1.0 / self.scv, (1.0 - share) / self.chance)) * self.mean_s * self.scv

    def reached(self, times_s: Vector) -> Vector:
        """The share of requests that wait no longer than each of these times."""
        import numpy as np
        from scipy.special import gammaincc

        if self.mean_s == 0.0:
            return np.asarray(times_s >= 0.0, dtype=float)
        late = self.chance * gammaincc(1.0 / self.scv, np.maximum(times_s, 0.0) / (self.mean_s * self.scv))
        return np.where(times_s < 0.0, 0.0, 1.0 - late)


def erlang_c(servers: int, offered: float) -> float:
    """The chance that all of ``servers`` are busy at an offered load (lambda E[S]) below them."""
    blocked = 1.0
    for k in range(1, servers + 1):
        blocked = offered * blocked / (k + offered * blocked)
    rho = offered / servers
    return blocked / (1.0 - rho * (1.0 - blocked))


def wait_of(rate: float, service: Service, servers: int = 1) -> Wait:
    """The wait in M/G/c. Raises InputError when the load is one or more."""
    offered = rate * service.mean_s
    rho = offered / servers
    if rho >= 1.0:
        raise InputError(
            f"{rate:g} requests a second keep {servers} busy for {offered:.2f} s of every second",
            expected="a load below one", remedy="more replicas, a faster model, or fewer requests",
        )  # fmt: skip
    if rho <= 0.0:
        return Wait(0.0, 0.0, 1.0)
    chance, scv = erlang_c(servers, offered), service.scv
    if chance < _NEVER:
        return Wait(0.0, 0.0, 1.0)
    exponential = chance * service.mean_s / (servers * (1.0 - rho))
    constant = 0.5 * exponential * (1.0 + min(_CAP, _cosmetatos(servers, rho)))
    mean = (1.0 + scv) / (2.0 * scv / exponential + (1.0 - scv) / constant)
    third = 3.0 * scv * (1.0 + scv) if scv >= 1.0 else (1.0 + 2.0 * scv) * (1.0 + scv)
    spread = 2.0 * rho - 1.0 + 4.0 * (1.0 - rho) * third / (3.0 * (1.0 + scv) ** 2)
    return Wait(chance=chance, mean_s=mean / chance, scv=max(spread, 0.01))


def _cosmetatos(servers: int, rho: float) -> float:
    """By what share M/D/c waits longer than half of M/M/c."""
    return (1.0 - rho) * (servers - 1) * (math.sqrt(4.0 + 5.0 * servers) - 2.0) / (16.0 * rho * servers)


@dataclass(frozen=True, slots=True)
class Response:
    """A wait and then one of ``points`` seconds, each as likely as its weight; the two are independent."""

    wait: Wait
    points: Vector
    weights: Vector

    def within(self, time_s: float) -> float:
        """The share of requests that take no longer."""
        return float(self.weights @ self.wait.reached(time_s - self.points))

    def quantile(self, share: float) -> float:
        """The seconds that ``share`` of the requests do not exceed."""
        import numpy as np
        from scipy.optimize import brentq

        order = np.argsort(self.points)
        passed = np.cumsum(self.weights[order])
        low, high = (
            float(self.points[order[min(int(np.searchsorted(passed, s)), order.size - 1)]])
            for s in (share, (1.0 + share) / 2.0)
        )
        # No sooner than without a wait, and no later than where time and wait each leave half of the rest behind.
        high += self.wait.quantile((1.0 + share) / 2.0) + 1e-12
        if self.within(high) <= share:
            return high
        if self.within(low) >= share:
            return low
        return float(brentq(lambda time_s: self.within(time_s) - share, low, high, xtol=1e-9, rtol=1e-4))


def response_of(wait: Wait, service: Service) -> Response:
    """A wait and a service that is gamma distributed."""
    return evenly(wait, gamma_quantiles(service.mean_s, service.scv)(middles(MIX)))


def evenly(wait: Wait, points: Vector) -> Response:
    """The same for points that are alike in weight."""
    import numpy as np

    return Response(wait, points, np.full(points.size, 1.0 / points.size))


def gamma_quantiles(mean: float, scv: float) -> Callable[[Vector], Vector]:
    """Quantiles of a gamma distribution; of a constant where nothing varies."""
    import numpy as np
    from scipy.special import gammaincinv

    if scv < 1e-6:
        return lambda shares: np.full_like(shares, mean)
    return lambda shares: np.asarray(gammaincinv(1.0 / scv, shares) * mean * scv)


def middles(count: int) -> Vector:
    """The middles of so many equal shares."""
    import numpy as np

    return (np.arange(count) + 0.5) / count


def gamma_quantile(mean: float, scv: float, share: float) -> float:
    """One quantile of a gamma distribution."""
    import numpy as np

    return float(gamma_quantiles(mean, scv)(np.array(share))) if mean > 0 else 0.0
