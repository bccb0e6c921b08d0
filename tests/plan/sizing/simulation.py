"""Discrete-event simulations of the two servers that the queueing room has formulas for: the truth they are held to."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Seen:
    """Times of every simulated request, in seconds."""

    first: np.ndarray
    token: np.ndarray

    def quantiles(self, share: float) -> tuple[float, float]:
        return float(np.quantile(self.first, share)), float(np.quantile(self.token, share))


def first_come_first_served(rate: float, services: np.ndarray, servers: int, *, seed: int) -> np.ndarray:
    """Response times of Poisson arrivals at ``servers`` that work on one request each."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / rate, len(services)))
    free = [0.0] * servers
    out = np.empty(len(services))
    for n, (at, service) in enumerate(zip(arrivals, services, strict=True)):
        start = max(at, heapq.heappop(free))
        heapq.heappush(free, start + service)
        out[n] = start + service - at
    return out[len(out) // 10 :]


def gathered(rate: float, batch_s: Callable[[float], float], most: int, count: int, *, seed: int) -> np.ndarray:
    """Response times where the one server takes all who wait, up to ``most``, whenever it is free."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / rate, count))
    out, n, now = np.empty(count), 0, 0.0
    while n < count:
        now = max(now, arrivals[n])
        taken = min(int(np.searchsorted(arrivals, now, side="right")) - n, most)
        now += batch_s(float(taken))
        out[n : n + taken] = now - arrivals[n : n + taken]
        n += taken
    return out[count // 10 :]


def batched_continuously(
    rate: float, prefills: np.ndarray, step_s: Callable[[float], float], tokens: int, *, seed: int
) -> Seen:
    """Prefill first: while somebody waits, prefill the next; else one decode step for all that run."""
    rng = np.random.default_rng(seed)
    count = len(prefills)
    arrivals = np.cumsum(rng.exponential(1 / rate, count))
    first, done = np.zeros(count), np.zeros(count)
    running: dict[int, int] = {}
    now, waiting = 0.0, 0
    while waiting < count or running:
        if waiting < count and arrivals[waiting] <= now:
            now += prefills[waiting]
            first[waiting] = now
            running[waiting] = tokens - 1
            waiting += 1
        elif running:
            now += step_s(float(len(running)))
            for request in [r for r, left in running.items() if left == 1]:
                done[request] = now
                del running[request]
            running = {r: left - 1 for r, left in running.items()}
        else:
            now = arrivals[waiting]
    kept = slice(count // 5, count - count // 10)
    return Seen((first - arrivals)[kept], ((done - first) / (tokens - 1))[kept])
