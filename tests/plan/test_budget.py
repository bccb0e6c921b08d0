"""Budgets: every documented form is read in its unit, and nothing but an InputError comes out of bad text."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.plan.budget import parse_budget
from hasten.records import InputError

LOWER = ["quality_drop", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "bytes", "peak_rss_bytes", "energy_j"]
HIGHER = ["quality", "throughput_per_s", "speedup"]
WORDS = st.sampled_from(
    [*LOWER, *HIGHER, "p95", "size", "latency", "<=", ">=", "≤", "<", "=", "20", "1e400", "-1", "1.2.3", "nan", "inf",
     "ms", "MJ", "GB", "%", "x", "/s", ",", ";", "and", "\n", "\t", " ", "é", "٣", "\x00"]
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "metric", "op", "value"),
    [
        ("quality_drop<=1%", "quality_drop", "<=", 1.0),
        ("drop <= 0.5 pt", "quality_drop", "<=", 0.5),
        ("quality_drop<=0", "quality_drop", "<=", 0.0),
        ("quality>=90%", "quality", ">=", 90.0),
        ("p95_ms<=20", "p95_ms", "<=", 20.0),
        ("p95<=20ms", "p95_ms", "<=", 20.0),
        ("p99 ≤ 0.02 s", "p99_ms", "<=", 20.0),
        ("p90<=500us", "p90_ms", "<=", 0.5),
        ("latency_ms<=5", "p50_ms", "<=", 5.0),
        ("P50<=1e1", "p50_ms", "<=", 10.0),
        ("size<=50MB", "bytes", "<=", 50e6),
        ("memory<=1GiB", "peak_rss_bytes", "<=", 2.0**30),
        ("throughput>=100/s", "throughput_per_s", ">=", 100.0),
        ("throughput ≥ 100 req/s", "throughput_per_s", ">=", 100.0),
        ("speedup>=3x", "speedup", ">=", 3.0),
        ("energy<=5mJ", "energy_j", "<=", 0.005),
    ],
)
def test_one_bound(text: str, metric: str, op: str, value: float) -> None:
    (found,) = parse_budget(text).constraints
    assert (found.metric, found.op) == (metric, op)
    assert found.value == pytest.approx(value)
    assert found.text == text


@pytest.mark.parametrize(
    "text",
    [
        "quality_drop<=1%, p95_ms<=20",
        "quality_drop<=1%; p95_ms<=20",
        "quality_drop<=1% and p95_ms<=20",
        "quality_drop<=1% AND\n p95_ms<=20,",
    ],
)
def test_separators(text: str) -> None:
    assert [c.metric for c in parse_budget(text).constraints] == ["quality_drop", "p95_ms"]


@pytest.mark.parametrize("text", ["", "  ", ",", "\n"])
def test_empty_budget_bounds_nothing(text: str) -> None:
    assert parse_budget(text).constraints == ()


@pytest.mark.parametrize(
    ("text", "at", "says"),
    [
        ("p95_ms<=20, qualty_drop<=1", "qualty_drop", "quality_drop"),
        ("size<=50MBB", "MBB", "did you mean mb"),
        ("p95<=20kg", "kg", "unknown unit"),
        ("p95_ms<20", "<", "p95_ms<=VALUE"),
        ("p95_ms=20", "=", "p95_ms<=VALUE"),
        ("p95_ms==20", "==", "p95_ms<=VALUE"),
        ("speedup>3x", ">", "speedup>=VALUE"),
        ("quality_drop>=1", ">=", "better lower"),
        ("speedup<=3", "<=", "better higher"),
        ("p95_ms<=0", "0", "never"),
        ("size<=-5MB", "-5", "never"),
        ("quality_drop<=-101", "-101", "points"),
        ("quality_drop<=101", "101", "points"),
        ("quality>=101", "101", "points"),
        ("p95_ms<=1.2.3", "1.2.3", "no number"),
        ("p95_ms<=1e999", "1e999", "no number"),
        ("size<=1e308GB", "1e308", "no number"),
        ("p95_ms<=nan", "p95_ms", "no bound"),
        ("p95_ms<=inf", "p95_ms", "no bound"),
        ("energy<=5MJ", "MJ", "mJ"),
        ("fast please", "fast", "no bound"),
        ("quality_drop<=1, quality_drop<=2", "quality_drop<=2", "twice"),
        ("p95<=20, p95_ms<=10", "p95_ms<=10", "twice"),
    ],
)
def test_errors_point_at_the_token(text: str, at: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_budget(text)
    assert says in str(caught.value)
    _, quoted, caret = caught.value.got.split("\n")
    assert quoted[caret.index("^") :].startswith(at)
    assert caught.value.remedy


@given(st.one_of(st.text(max_size=60), st.lists(WORDS, max_size=12).map("".join)))
def test_any_text_is_a_budget_or_an_input_error(text: str) -> None:
    try:
        budget = parse_budget(text)
    except InputError:
        return
    assert all(math.isfinite(c.value) for c in budget.constraints)
    assert len({c.metric for c in budget.constraints}) == len(budget.constraints)


@given(
    st.dictionaries(
        st.sampled_from([*LOWER, *HIGHER]),
        st.floats(min_value=0.001, max_value=100, allow_nan=False),
        max_size=11,
    ),
    st.sampled_from([", ", ";", " and ", "\n"]),
)
def test_canonical_forms_round_trip(bounds: dict[str, float], separator: str) -> None:
    text = separator.join(f"{m}{'<=' if m in LOWER else '>='}{v!r}" for m, v in bounds.items())
    budget = parse_budget(text)
    assert {c.metric: c.value for c in budget.constraints} == bounds
    assert parse_budget(separator.join(c.text for c in budget.constraints)) == budget
