"""verdict.json: the documented keys, a faithful round trip, and refusal of what it cannot read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hasten.records import Check, Constraint, Figures, Flip, InputError, Interval, Measured, Quality, Verdict
from hasten.report.verdict_json import read_verdict, verdict_from_dict, verdict_to_dict, write_verdict

utf8 = st.text(st.characters(codec="utf-8"))
numbers = st.floats(allow_nan=False)
intervals = st.builds(Interval, numbers, numbers, numbers)
measured = st.builds(
    Measured,
    recipe=st.dictionaries(utf8, st.integers() | utf8),
    recipe_id=utf8,
    label=utf8,
    figures=st.builds(
        Figures,
        throughput_per_s=st.none() | numbers,
        bytes=st.none() | st.integers(0, 2**60),
        quality=st.none() | st.builds(Quality, utf8, numbers, st.integers(0)),
    ),
)
checks = st.builds(
    Check,
    st.builds(Constraint, st.sampled_from(["p50_ms", "quality_drop"]), st.sampled_from(["<=", ">="]), numbers, utf8),
    measured=st.none() | numbers,
    holds=st.booleans(),
    interval_holds=st.none() | st.booleans(),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data())
def test_a_verdict_survives_json(verdict: Verdict, data: st.DataObject) -> None:
    changed = replace(
        verdict,
        chosen=data.draw(st.none() | measured),
        tuned_baseline=data.draw(measured),
        speedup=data.draw(st.none() | intervals),
        checks=data.draw(st.lists(checks, max_size=2).map(tuple)),
        flips=data.draw(
            st.lists(st.builds(Flip, st.integers(0), utf8, st.none() | utf8, utf8, utf8), max_size=2).map(tuple)
        ),
        warnings=data.draw(st.lists(utf8, max_size=2).map(tuple)),
    )
    text = json.dumps(verdict_to_dict(changed), allow_nan=False)
    assert verdict_from_dict(json.loads(text)) == changed


def test_the_documented_keys_stand_where_the_documentation_says(verdict: Verdict) -> None:
    data = verdict_to_dict(verdict)
    assert data["schema_version"] == 1
    assert data["outcome"] == "met"
    assert data["budget"]["constraints"][0] == {
        "metric": "quality_drop", "op": "<=", "value": 1.0, "text": "quality_drop<=1%",
    }  # fmt: skip
    for side in ("baseline", "tuned_baseline", "chosen"):
        assert {"recipe", "latency_ms", "throughput_per_s", "bytes", "peak_rss_bytes", "quality"} <= set(data[side])
        assert {"p50", "p90", "p95", "p99"} <= set(data[side]["latency_ms"])
        assert {"metric", "value", "n"} <= set(data[side]["quality"])
    assert data["speedup"] == {"estimate": 5.12, "low": 4.81, "high": 5.39}
    assert data["quality_drop"] == {"estimate": 0.2, "low": -0.3, "high": 0.7}
    assert data["splits"]["test"] == 1600
    assert data["host"]["threads"] == 2
    assert data["elapsed_s"] == 412.7


def keys(data: Any) -> Iterator[str]:
    """Every key at every depth, but not inside free-form maps (recipes, versions, other metrics)."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield key
            if key not in ("recipe", "versions", "others"):
                yield from keys(value)
    elif isinstance(data, list):
        for value in data:
            yield from keys(value)


def test_every_key_is_documented_and_no_other(verdict: Verdict) -> None:
    page = (Path(__file__).parents[2] / "docs" / "verdict.md").read_text(encoding="utf-8")
    documented = {
        name for cell in re.findall(r"^\| (`[^|]*) \|", page, re.MULTILINE) for name in re.findall(r"`(\w+)`", cell)
    }
    energy = {"energy", "joules_per_request", "method", "note"}
    assert documented - energy == set(keys(verdict_to_dict(verdict))) - energy
    assert energy <= documented


def test_no_chosen_is_null(verdict: Verdict) -> None:
    none = replace(verdict, outcome="baseline_best", chosen=None, speedup=None, quality_drop=None)
    data = json.loads(json.dumps(verdict_to_dict(none)))
    assert data["chosen"] is None
    assert verdict_from_dict(data) == none


def test_non_finite_figures_stay_valid_json(verdict: Verdict, tmp_path: Path) -> None:
    write_verdict(tmp_path / "v.json", replace(verdict, speedup=Interval(math.inf, 1.0, math.inf)))
    text = (tmp_path / "v.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert read_verdict(tmp_path / "v.json").speedup == Interval(math.inf, 1.0, math.inf)


def test_writing_replaces_the_file_whole_and_leaves_nothing_beside(verdict: Verdict, tmp_path: Path) -> None:
    path = tmp_path / "verdict.json"
    write_verdict(path, verdict)
    write_verdict(path, replace(verdict, outcome="not_met"))
    assert read_verdict(path).outcome == "not_met"
    assert [p.name for p in tmp_path.iterdir()] == ["verdict.json"]


def test_a_failed_write_leaves_the_old_file(verdict: Verdict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "verdict.json"
    write_verdict(path, verdict)
    before = path.read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_verdict(path, replace(verdict, outcome="not_met"))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["verdict.json"]


def test_a_newer_schema_asks_for_an_upgrade(verdict: Verdict) -> None:
    with pytest.raises(InputError, match="upgrade hasten"):
        verdict_from_dict({**verdict_to_dict(verdict), "schema_version": 2})


@pytest.mark.parametrize("version", [None, "1", True, 0, 1.0])
def test_a_senseless_schema_version_is_refused(verdict: Verdict, version: object) -> None:
    with pytest.raises(InputError, match="schema_version is"):
        verdict_from_dict({**verdict_to_dict(verdict), "schema_version": version})


def test_a_bad_key_is_named(verdict: Verdict) -> None:
    data = verdict_to_dict(verdict)
    data["chosen"]["latency_ms"]["p50"] = "fast"
    with pytest.raises(InputError, match=r"'chosen\.latency_ms\.p50'"):
        verdict_from_dict(data)
    del data["outcome"]
    data["chosen"]["latency_ms"]["p50"] = 1.0
    with pytest.raises(InputError, match="'outcome'"):
        verdict_from_dict(data)


def test_unknown_keys_of_the_same_schema_are_passed_over(verdict: Verdict) -> None:
    data = verdict_to_dict(verdict)
    assert verdict_from_dict({**data, "added_later": 1, "chosen": {**data["chosen"], "colour": "blue"}}) == verdict


@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00", "null"])
def test_a_file_that_is_no_verdict_is_an_input_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "verdict.json").write_text(content)
    with pytest.raises(InputError, match="rewrites the verdict"):
        read_verdict(tmp_path / "verdict.json")
    with pytest.raises(InputError, match="a stopped one continues"):
        read_verdict(tmp_path / "absent.json")
