"""Servers that work on several requests at once: continuous batching, and batches of whole requests.

Takes rates and the times of passes, gives a :class:`Flow`.

* *Continuous batching* (decoders): a prefill goes before the next decode step, so prefills are an M/G/1 queue whose
  server takes vacations, the steps (Fuhrmann and Cooper 1985: the wait is that of M/G/1 plus a residual vacation).
  Between prefills all running sequences share one server whose speed depends on their number: a product form.
* *Gathering* (encoders on a GPU): whoever waits goes together, so batches are a Markov chain.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from hasten.plan.sizing.queueing import (
    MIX,
    Response,
    Service,
    Vector,
    Wait,
    evenly,
    gamma_quantiles,
    middles,
    response_of,
    wait_of,
)

_REST, _FOUND, _PLACES = 8, 32, 16  # points of the rest of a step, of the steps that may be met, of waits for a place
_STATES, _WAITING, _KNOTS = 4096, 4096, 32
_ROUNDS = 60
_BRIM, _RARE = 0.999, 1e-3
_PILED = 0.01  # the chance of the largest batch beyond which others would be left behind


@dataclass(frozen=True, slots=True)
class Flow:
    """A replica under load: the mean number of requests in work, how many there are in all but one of a hundred moments
    (``crowd``), the share of time that it is busy, the time to the first token (for an encoder: to the answer), and the
    quantiles of the time for each next one."""

    running: float
    crowd: float
    load: float
    first: Response
    token_s: Callable[[float], float]


# ------------------------------------------------------------------ continuous batching


@dataclass(frozen=True, slots=True)
class Batching:
    """One replica that batches continuously: ``prefill`` of a request, ``steps`` seconds of a decode step with 0, 1, 2,
    ... running (see :func:`steps_of`; no more fit, the others wait), ``output_tokens`` a request, the first out of its
    prefill."""

    prefill: Service
    steps: Vector
    output_tokens: float


def flow_of(rate: float, server: Batching) -> Flow | None:
    """What one replica does at ``rate`` requests a second; ``None`` when they pile up."""
    import numpy as np

    load = rate * server.prefill.mean_s
    chances = _chances(rate, server, load) if load < 1.0 else None
    if chances is None:
        return None
    number = _running(server, chances)
    running = float(chances @ number)
    first = _after_a_step(server.prefill, server.steps[number], chances)
    waits = _for_a_place(rate, server, chances)
    return Flow(
        running=running, crowd=float(number[int(np.searchsorted(np.cumsum(chances), 0.99))]),
        load=load + (1.0 - load) * float(1.0 - chances[0]),
        first=evenly(wait_of(rate, server.prefill), np.add.outer(first, waits).ravel()),
        token_s=lambda share: _token_s(share, rate, server, chances, load),
    )  # fmt: skip


def steps_of(step_s: Callable[[float], float], most: float) -> Vector:
    """Seconds of a step with 0, 1, ... ``most`` running; asked at a few numbers, straight between them."""
    import numpy as np

    count = int(min(most, _STATES)) + 1
    known = np.unique(np.geomspace(1, max(2, count - 1), _KNOTS).astype(int))
    return np.interp(np.arange(count), known, [step_s(float(n)) for n in known])


def _chances(rate: float, server: Batching, load: float) -> Vector | None:
    """To find 0, 1, 2, ... running or waiting for a place: all share one server, whose speed depends on how many run,
    so the chances are a product whatever the lengths' distribution (Kelly 1979). ``None`` when they pile up."""
    import numpy as np

    tokens, most = max(0.0, server.output_tokens - 1), len(server.steps) - 1
    full = rate * tokens * float(server.steps[most]) / (1.0 - load) / most  # from the last place on it stays the same
    if full >= _BRIM:
        return None
    waiting = 0 if full <= 0.0 else min(_WAITING, math.ceil(math.log(1e-6) / math.log(full)))
    number = np.minimum(np.arange(1, most + waiting + 1), most)
    ratios = np.log(np.maximum(rate * tokens * server.steps[number] / (1.0 - load) / number, 1e-300))
    logs = np.concatenate([[0.0], np.cumsum(ratios)])
    chances = np.exp(logs - logs.max())
    return np.asarray(chances / chances.sum())


def _running(server: Batching, chances: Vector) -> Vector:
    """How many run in each state."""
    import numpy as np

    return np.minimum(np.arange(len(chances)), len(server.steps) - 1)


def _token_s(share: float, rate: float, server: Batching, chances: Vector, load: float) -> float:
    """Quantile of a request's mean time a token. Its mean is Little's law; about it, requests differ by the crowds that
    they meet, of which a life averages a part (two thirds of the variance are left at low load, all at high), and by
    the prefills that interrupt them."""
    import numpy as np

    steps, tokens = server.steps, server.output_tokens - 1
    if tokens <= 0:
        return 0.0
    number = _running(server, chances)
    running = float(chances @ number)
    if running <= 0.0:
        return float(steps[1])
    mean = running / (rate * tokens)
    met = number * chances / running  # what a request sees of itself and others, weighted by time
    times = steps[number] / (1.0 - load)
    centre = float(met @ times)
    last = min(len(steps) - 1, math.ceil(running) + 1)
    crowd = min(1.0, rate * tokens * float(steps[last] - steps[max(0, last - 1)]) / (1.0 - load))
    # Who comes also stops the others for a prefill: a burst weighs by so much more than its number.
    spread = (1.0 + load) * math.sqrt((2.0 + crowd) / 3.0)
    by_crowd = spread * (float(np.interp(share, np.cumsum(met), times)) - centre)
    # A life meets a Poisson number of prefills; who meets more of them also meets a larger crowd, so both are added.
    prefills, varied = rate * tokens * mean, 1.0 + server.prefill.scv
    stalls = gamma_quantiles(prefills * server.prefill.mean_s / tokens, varied / max(prefills, 1e-9))
    by_stalls = float(stalls(np.array(share))) - prefills * server.prefill.mean_s / tokens
    return max(float(steps[1]), mean + by_crowd + by_stalls)


def _after_a_step(prefill: Service, times: Vector, chances: Vector) -> Vector:
    """One's own prefill after the rest of a step that may be running: points in seconds, all alike in weight."""
    import numpy as np

    steps = np.where(np.arange(len(times)) == 0, 0.0, times)
    order = np.argsort(steps, kind="stable")
    found = np.interp(middles(_FOUND), np.cumsum(chances[order]), steps[order])
    rest = np.sort(np.outer(found, middles(_REST)).ravel())[_REST // 2 :: _REST]  # as few points as before
    own = gamma_quantiles(prefill.mean_s, prefill.scv)(middles(MIX))
    return np.asarray(np.add.outer(own, rest).ravel())


def _for_a_place(rate: float, server: Batching, chances: Vector) -> Vector:
    """Seconds until one of the places is free: mostly none; exponential for those who find all taken."""
    import numpy as np

    most = len(server.steps) - 1
    taken = float(chances[most:].sum())
    if taken < _RARE:
        return np.zeros(1)
    queued = float(chances[most:] @ np.arange(len(chances) - most))
    shares = np.clip((middles(_PLACES) - (1.0 - taken)) / taken, 0.0, 1.0 - 0.5 / _PLACES)
    return np.asarray(-np.log1p(-shares) * queued / (rate * taken))


# ------------------------------------------------------------------ batches of whole requests


def single_of(rate: float, service: Service, servers: int = 1) -> Flow | None:
    """Replicas behind one queue that take one request at a time each; ``None`` when they pile up."""
    load = rate * service.mean_s / servers
    if load >= 1.0:
        return None
    return Flow(load, 1.0, load, response_of(wait_of(rate, service, servers), service), lambda _: 0.0)


def gathering_of(rate: float, batch_s: Callable[[float], float], *, most: int) -> Flow | None:
    """One replica that takes all who wait, up to ``most``, whenever it is free; ``batch_s(n)`` is what n take together.

    Batches are a Markov chain: the next one is whoever came during this one. ``None`` when more come than it takes.
    """
    import numpy as np

    sizes = np.arange(1, most + 1)
    times = np.array([batch_s(float(n)) for n in sizes])
    arrive = _poisson(rate * times, most)  # [this batch, how many come during it]
    if float(arrive[-1] @ np.arange(most + 1)) >= most * (1.0 - 1e-3):
        return None
    follow = np.column_stack([arrive[:, 0] + arrive[:, 1], arrive[:, 2:]])
    stationary = np.full(most, 1.0 / most)
    for _ in range(_ROUNDS):
        stationary = stationary @ follow
    if stationary[-1] > _PILED:
        return None
    return _gathered_flow(rate, times, arrive, stationary)


def _gathered_flow(rate: float, times: Vector, arrive: Vector, stationary: Vector) -> Flow:
    import numpy as np

    idle_s = float(stationary @ arrive[:, 0]) / rate
    cycle_s = float(stationary @ times) + idle_s
    busy = stationary * times / cycle_s  # chances to come into a batch of each size
    # Whoever comes into a batch waits for its rest and goes with the others who come: one more than Poisson.
    with_me = arrive[:, :-1] / arrive[:, :-1].sum(axis=1, keepdims=True)
    rests = middles(_REST)
    points = np.add.outer(np.outer(times, rests), times)  # [batch met, rest, own batch]
    weights = np.broadcast_to((busy[:, None] * with_me)[:, None, :] / _REST, points.shape)
    kept = weights.ravel() > 1e-9
    points, weights = points.ravel()[kept], weights.ravel()[kept]
    points, weights = np.append(points, times[0]), np.append(weights, idle_s / cycle_s)
    running = float(stationary @ np.arange(1, len(times) + 1))
    response = Response(Wait(0.0, 0.0, 1.0), points, weights / weights.sum())
    crowd = float(np.searchsorted(np.cumsum(stationary), 0.99)) + 1.0
    return Flow(running, crowd, 1.0 - idle_s / cycle_s, response, lambda _: 0.0)


def _poisson(means: Vector, most: int) -> Vector:
    """Chances of 0 to ``most`` arrivals for each mean; the rest is with ``most``."""
    import numpy as np
    from scipy.special import gammaln

    counts = np.arange(most + 1)
    logs = np.outer(np.log(np.maximum(means, 1e-300)), counts) - means[:, None] - gammaln(counts + 1)
    found = np.exp(logs)
    found[:, -1] += np.maximum(0.0, 1.0 - found.sum(axis=1))
    return np.asarray(found)
