"""How far are the percentiles of the queueing formulas from discrete-event simulations?"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "plan" / "sizing"))
from common import write
from simulation import batched_continuously, first_come_first_served, gathered

from hasten.plan.sizing.batching import Batching, flow_of, gathering_of, steps_of
from hasten.plan.sizing.queueing import Service, response_of, wait_of

SHARES = (0.5, 0.9, 0.95, 0.99)


def main() -> None:
    rows = [*one_at_a_time(), *together(), *continuously()]
    errors = sorted(abs(r["error"]) for r in rows)
    write(
        "sizing/queues",
        "percentiles under load by formula against a discrete-event simulation, within 10 %",
        {
            "points": len(rows), "median": statistics.median(errors), "worst": errors[-1],
            "within_10_percent": sum(e <= 0.1 for e in errors) / len(errors), "rows": rows,
        },
    )  # fmt: skip
    print(f"{len(rows)} points: median {statistics.median(errors):.1%}, worst {errors[-1]:.1%}")


def one_at_a_time() -> list[dict[str, Any]]:
    """M/G/c with gamma services."""
    rows = []
    for servers in (1, 2, 8):
        for scv in (0.0, 0.5, 1.0, 2.0):
            for rho in (0.3, 0.6, 0.8, 0.9):
                rng = np.random.default_rng(1)
                services = np.ones(500_000) if scv == 0 else rng.gamma(1 / scv, scv, 500_000)
                seen = first_come_first_served(rho * servers, services, servers, seed=2)
                service = Service(1.0, scv)
                found = response_of(wait_of(rho * servers, service, servers), service)
                what = f"M/G/{servers}, squared variation {scv}, load {rho}"
                rows += [row(what, s, found.quantile(s), float(np.quantile(seen, s))) for s in SHARES]
    return rows


def together() -> list[dict[str, Any]]:
    """A server that takes all who wait."""
    rows = []
    for slope in (0.0002, 0.001):
        for rate in (20.0, 200.0, 600.0):

            def batch(count: float, slope: float = slope) -> float:
                return 0.004 + slope * count

            found = gathering_of(rate, batch, most=64)
            if found is not None:
                seen = gathered(rate, batch, 64, 200_000, seed=3)
                what = f"batches of 4 ms + {1e3 * slope:g} ms a request, {rate:g} a second"
                rows += [row(what, s, found.first.quantile(s), float(np.quantile(seen, s))) for s in SHARES]
    return rows


def continuously() -> list[dict[str, Any]]:
    """Prefills of 40 ms, 120 tokens an answer."""
    rows = []
    for slope, rates in ((0.0005, (2.0, 5.0, 8.0)), (0.003, (0.5, 1.0, 1.5, 2.0))):
        for rate in rates:

            def step(running: float, slope: float = slope) -> float:
                return 0.01 + slope * running

            found = flow_of(rate, Batching(Service(0.04, 0.3), steps_of(step, 4096), 120))
            assert found is not None
            prefills = np.random.default_rng(4).gamma(1 / 0.3, 0.3 * 0.04, 60_000)
            seen = batched_continuously(rate, prefills, step, 120, seed=5)
            what = f"continuous batching, 10 ms + {1e3 * slope:g} ms a sequence, {rate:g} a second"
            for share in SHARES:
                first, token = seen.quantiles(share)
                rows += [
                    row(f"{what}: first token", share, found.first.quantile(share), first),
                    row(f"{what}: each next", share, found.token_s(share), token),
                ]
    return rows


def row(what: str, share: float, said: float, seen: float) -> dict[str, Any]:
    return {"what": what, "share": share, "formula_s": said, "simulated_s": seen, "error": said / seen - 1}


if __name__ == "__main__":
    main()
