"""Percentiles of waits by formula, held to simulations and to published values."""

from __future__ import annotations

import numpy as np
import pytest
from simulation import batched_continuously, first_come_first_served, gathered

from hasten.plan.sizing.batching import Batching, flow_of, gathering_of, steps_of
from hasten.plan.sizing.queueing import Service, erlang_c, response_of, wait_of
from hasten.records import InputError

WITHIN = 0.10
SHARES = (0.5, 0.95, 0.99)


@pytest.mark.parametrize(("servers", "rho", "chance"), [(2, 0.8, 0.71111), (4, 0.9, 0.78775), (16, 0.9, 0.59134)])
def test_the_chance_to_wait_is_erlangs(servers: int, rho: float, chance: float) -> None:
    assert erlang_c(servers, servers * rho) == pytest.approx(chance, abs=1e-4)


@pytest.mark.parametrize(
    ("scv", "queued"), [(4.0, (16.26, 1.82, 0.23)), (1.5, (8.50, 1.06, 0.15)), (0.5, (5.19, 0.68, 0.10))]
)
def test_mean_queues_are_kimuras(scv: float, queued: tuple[float, float, float]) -> None:
    """Kimura 1994, table 1, five servers at loads of 0.9, 0.7 and 0.5: the mean number who wait."""
    for rho, expected in zip((0.9, 0.7, 0.5), queued, strict=True):
        wait = wait_of(5 * rho, Service(1.0, scv), 5)
        assert 5 * rho * wait.chance * wait.mean_s == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(("rho", "p90", "p99"), [(0.5, 1.516, 3.336), (0.7, 3.077, 6.485), (0.8, 5.012, 10.356)])
def test_one_server_with_constant_service_waits_as_known_exactly(rho: float, p90: float, p99: float) -> None:
    wait = wait_of(rho, Service(1.0, 0.0))
    assert wait.quantile(0.9) == pytest.approx(p90, rel=0.03)
    assert wait.quantile(0.99) == pytest.approx(p99, rel=0.03)


def services(scv: float, count: int) -> np.ndarray:
    rng = np.random.default_rng(5)
    return np.ones(count) if scv == 0 else rng.gamma(1 / scv, scv, count)


@pytest.mark.parametrize("servers", [1, 4])
@pytest.mark.parametrize("scv", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("rho", [0.3, 0.7, 0.85])
def test_response_times_are_those_of_a_simulation(servers: int, scv: float, rho: float) -> None:
    seen = first_come_first_served(rho * servers, services(scv, 300_000), servers, seed=1)
    wait = wait_of(rho * servers, Service(1.0, scv), servers)
    response = response_of(wait, Service(1.0, scv))
    for share in SHARES:
        assert response.quantile(share) == pytest.approx(np.quantile(seen, share), rel=WITHIN)


# Seconds that one more running request adds to a step; requests a second; up to 84 % of what can be borne.
LOADS = [(0.0005, 2.0), (0.0005, 6.0), (0.0005, 9.0), (0.003, 0.5), (0.003, 1.2), (0.003, 1.6)]


@pytest.mark.parametrize(("slope", "rate"), LOADS)
def test_tokens_come_as_in_a_simulation(slope: float, rate: float) -> None:
    prefill, scv, tokens = 0.04, 0.3, 120

    def step(running: float) -> float:
        return 0.01 + slope * running

    found = flow_of(rate, Batching(Service(prefill, scv), steps_of(step, 4096), tokens))
    assert found is not None
    rng = np.random.default_rng(2)
    seen = batched_continuously(rate, rng.gamma(1 / scv, scv * prefill, 25_000), step, tokens, seed=3)
    for share in SHARES:
        first, token = seen.quantiles(share)
        assert found.first.quantile(share) == pytest.approx(first, rel=WITHIN)
        assert found.token_s(share) == pytest.approx(token, rel=WITHIN)


@pytest.mark.parametrize("rate", [20.0, 200.0, 900.0])
def test_gathered_batches_are_answered_as_in_a_simulation(rate: float) -> None:
    def batch(count: float) -> float:
        return 0.004 + 0.0005 * count

    found = gathering_of(rate, batch, most=64)
    assert found is not None
    seen = gathered(rate, batch, 64, 60_000, seed=4)
    for share in SHARES:
        assert found.first.quantile(share) == pytest.approx(np.quantile(seen, share), rel=WITHIN)


def test_too_much_load_is_said() -> None:
    with pytest.raises(InputError, match=r"busy for 2\.00 s of every second"):
        wait_of(2.0, Service(1.0))
    assert flow_of(30.0, Batching(Service(0.04), steps_of(lambda n: 0.01 + 0.001 * n, 256), 100)) is None
    assert gathering_of(5000.0, lambda n: 0.004 + 0.0005 * n, most=64) is None
