"""Money, energy, cascades: identities that anybody can check by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.plan.sizing import economics as e
from hasten.plan.sizing.prices import read_prices
from hasten.records import InputError


def test_a_million_tokens() -> None:
    assert e.usd_per_million(3.6, 1000.0) == pytest.approx(1.0)


@given(st.floats(0.01, 1e4), st.floats(0.01, 1e3), st.floats(0, 0.9))
def test_machines_leave_their_headroom(rate: float, capacity: float, headroom: float) -> None:
    count = e.machines_for(rate, capacity, headroom)
    assert rate / count <= capacity * (1 - headroom) * (1 + 1e-6)
    assert count == 1 or rate / (count - 1) > capacity * (1 - headroom) * (1 - 1e-6)


def test_energy_counts_what_stands_idle() -> None:
    full = e.energy_j(100.0, busy_s=0.1, load=1.0, idle_share=0.3)
    half = e.energy_j(100.0, busy_s=0.1, load=0.5, idle_share=0.3)
    assert full == pytest.approx(10.0)
    assert half == pytest.approx(13.0)
    assert e.carbon_g(3.6e6, g_per_kwh=400) == pytest.approx(400.0)


def test_a_cascade_costs_what_reaches_each_stage() -> None:
    found = e.cascade([e.Stage(1.0, 0.1, 0.7), e.Stage(10.0, 1.0, 0.5), e.Stage(100.0, 2.0, 1.0)])
    assert found.cost == pytest.approx(1 + 0.3 * 10 + 0.15 * 100)
    assert found.latency_s == pytest.approx(0.1 + 0.3 * 1.0 + 0.15 * 2.0)
    with pytest.raises(InputError, match="share from 0 to 1"):
        e.Stage(1.0, 0.1, 1.2)


@given(st.floats(0.01, 10), st.floats(0.01, 100), st.floats(0, 1))
def test_two_stages_pay_below_the_limit_and_only_there(small: float, large: float, escalated: float) -> None:
    both = e.cascade([e.Stage(small, 0.0, 1 - escalated), e.Stage(large, 0.0, 1.0)]).cost
    limit = e.escalation_limit(small, large)
    if escalated < limit - 1e-6:
        assert both < large
    elif escalated > limit + 1e-6:
        assert both > large * (1 - 1e-9)


def test_buying_against_building() -> None:
    price = read_prices()["gpt-4o-mini"]
    each = price.request_usd(800, 200)
    assert each == pytest.approx(800 * 0.15e-6 + 200 * 0.60e-6)
    assert e.break_even_per_month(1000.0, each) == pytest.approx(1000 / each)


def test_the_edge_pays_where_the_network_takes_longer() -> None:
    assert e.edge_is_sooner(30, 35)
    assert not e.edge_is_sooner(50, 35)
