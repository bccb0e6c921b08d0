"""The ledger: what was appended is read back, whatever moment the writer died at."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.ledger import Ledger, plain, read_rows, samples_row, trial_from_row, trial_to_row
from hasten.records import InputError, Trial

HEADER = {"command": "hasten optimize m --data d.csv", "budget": "p50_ms<=5"}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
trials_any = st.builds(
    Trial,
    recipe=st.dictionaries(st.text(st.characters(codec="utf-8")), st.integers()),
    recipe_id=st.text("0123456789abcdef", min_size=10, max_size=10),
    label=st.text(st.characters(codec="utf-8")),
    reason=st.none() | st.text(st.characters(codec="utf-8")),
    rejected_at=st.none() | st.sampled_from(["export", "parity"]),
    elapsed_s=st.floats(allow_nan=False),
    notes=st.lists(st.text(st.characters(codec="utf-8")), max_size=2).map(tuple),
)


def opened(path: Path, **header: Any) -> Ledger:
    return Ledger.open(path, run_key="k1", header={**HEADER, **header})


def make_trial(name: str) -> Trial:
    return Trial(
        recipe={"passes": [], "runtime": {"kind": "torch"}},
        recipe_id=name,
        label=name,
        stage="screen",
        status="ok",
        elapsed_s=1.5,
    )


@given(trials_any)
def test_a_trial_survives_json(trial: Trial) -> None:
    assert trial_from_row(json.loads(json.dumps(trial_to_row(trial), allow_nan=False))) == trial


@given(json_values)
def test_plain_data_is_strict_json_and_settled(value: Any) -> None:
    once = plain(value)
    text = json.dumps(once, allow_nan=False)
    text.encode("utf-8")
    assert plain(json.loads(text)) == once


def test_non_finite_numbers_come_back_as_numbers() -> None:
    trial = make_trial("a")
    row = {
        **trial_to_row(trial),
        "elapsed_s": "NaN",
        "speedup": plain({"estimate": math.inf, "low": 1, "high": -math.inf}),
    }
    read = trial_from_row(json.loads(json.dumps(row, allow_nan=False)))
    assert math.isnan(read.elapsed_s)
    assert read.speedup is not None
    assert (read.speedup.estimate, read.speedup.high) == (math.inf, -math.inf)


def test_numpy_numbers_and_arrays_are_plain() -> None:
    import numpy as np

    data = plain({"a": np.float32(0.5), "b": np.int64(3), "c": np.array([1.0, 2.0]), "d": np.bool_(True)})
    assert json.dumps(data) == '{"a": 0.5, "b": 3, "c": [1.0, 2.0], "d": true}'


def test_bytes_and_objects_are_refused() -> None:
    for value in (b"x", object()):
        with pytest.raises(TypeError, match="no JSON form"):
            plain(value)


def test_rows_come_back_in_order_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "trials.jsonl"
    with opened(path) as ledger:
        ledger.append_trial(make_trial("a"))
        ledger.append_samples("chosen", [1.0, 2.0])
        ledger.append_samples("chosen", [1.23456789, 4.0])
    with opened(path) as ledger:
        ledger.append_trial(make_trial("b"))
        assert ledger.rows == read_rows(path) == Ledger.read(path)
    rows = read_rows(path)
    assert rows.header["command"] == HEADER["command"]
    assert [t.label for t in rows.trials()] == ["a", "b"]
    assert rows.samples() == {"chosen": (1.2346, 4.0)}, "the last measurement counts"


def test_any_torn_tail_is_dropped_reported_and_cut(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jsonl"
    with opened(whole) as ledger:
        ledger.append_trial(make_trial("a"))
        before = whole.stat().st_size
        ledger.append_trial(make_trial("ü"))
    content = whole.read_bytes()
    path = tmp_path / "torn.jsonl"
    # Every seventh place, and those at the row's ends.
    for end in sorted({*range(before, len(content), 7), before + 1, len(content) - 2, len(content) - 1}):
        path.write_bytes(content[:end])
        read = read_rows(path)
        assert [t.label for t in read.trials()] == ["a"]
        assert read.torn_bytes == end - before
        assert path.stat().st_size == end, "reading must not change the file"
        with opened(path) as ledger:
            assert ledger.torn_bytes == end - before
            ledger.append_trial(make_trial("c"))
        assert [t.label for t in read_rows(path).trials()] == ["a", "c"]
        assert path.read_bytes().startswith(content[:before]), "whole rows are never rewritten"


def test_a_torn_header_starts_afresh(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    path.write_bytes(b'{"type":"run","run_')
    with opened(path) as ledger:
        assert ledger.torn_bytes == 19
    assert read_rows(path).header["run_key"] == "k1"


def test_zeros_after_a_power_cut_are_a_torn_tail(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    opened(path).close()
    with path.open("ab") as stream:
        stream.write(b"\0" * 100 + b"\n")
    assert read_rows(path).torn_bytes == 101


def test_damage_before_the_last_line_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    with opened(path) as ledger:
        ledger.append_trial(make_trial("a"))
    path.write_bytes(path.read_bytes() + b"{broken\n{}\n")
    with pytest.raises(InputError, match="line 3"):
        read_rows(path)


@pytest.mark.parametrize("row", [{"type": "samples", "role": "chosen"}, {"type": "samples", "role": "x", "ms": [None]}])
def test_a_bad_samples_row_is_an_input_error(tmp_path: Path, row: Mapping[str, Any]) -> None:
    path = tmp_path / "trials.jsonl"
    with opened(path) as ledger:
        ledger.append(row)
    with pytest.raises(InputError, match="samples row"):
        read_rows(path).samples()


def test_a_bad_trial_row_names_the_field() -> None:
    row = trial_to_row(make_trial("a"))
    with pytest.raises(InputError, match="'status'"):
        trial_from_row({**row, "status": "maybe"})
    del row["label"]
    with pytest.raises(InputError, match="'label'"):
        trial_from_row(row)


def test_fields_of_a_newer_release_are_passed_over() -> None:
    trial = make_trial("a")
    assert trial_from_row({**trial_to_row(trial), "colour": "blue"}) == trial


def test_another_run_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    opened(path).close()
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"budget was 'p50_ms<=5', now 'p50_ms<=9'"):
        Ledger.open(path, run_key="k2", header={**HEADER, "budget": "p50_ms<=9"})
    assert path.read_bytes() == before


def test_the_same_key_resumes_though_the_command_is_typed_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    opened(path).close()
    with opened(path, command="hasten optimize ./m --data d.csv") as ledger:
        assert len(ledger.rows.rows) == 1


def test_a_newer_format_and_a_foreign_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    path.write_text('{"type":"run","format_version":99,"run_key":"k1"}\n')
    with pytest.raises(InputError, match="upgrade hasten"):
        opened(path)
    path.write_text('{"my":"notes"}\n')
    with pytest.raises(InputError, match="does not begin with a run row"):
        opened(path)


def test_a_full_disk_leaves_whole_rows_only(tmp_path: Path) -> None:
    class FullDisk:
        """Takes ten bytes of the line, then has no space."""

        def __init__(self, stream: Any) -> None:
            self._stream = stream
            self._taken = False

        def write(self, data: bytes) -> int:
            if self._taken:
                raise OSError(errno.ENOSPC, "no space left on device")
            self._taken = True
            return int(self._stream.write(data[:10]))

        def __getattr__(self, name: str) -> Any:
            return getattr(self._stream, name)

    path = tmp_path / "trials.jsonl"
    with opened(path) as ledger:
        before = path.read_bytes()
        ledger._stream = FullDisk(ledger._stream)  # type: ignore[assignment]
        with pytest.raises(OSError, match="no space"):
            ledger.append_trial(make_trial("a"))
        assert path.read_bytes() == before
        assert len(ledger.rows.rows) == 1


def test_samples_are_rounded_to_a_tenth_of_a_microsecond() -> None:
    assert samples_row("baseline", [1.000049999])["ms"] == [1.0]


def test_each_trial_is_read_once_however_often_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counted(row: Mapping[str, Any]) -> Trial:
        read.append(str(row["label"]))
        return trial_from_row(row)

    monkeypatch.setattr("hasten.ledger.trial_from_row", counted)
    with opened(tmp_path / "t.jsonl") as ledger:
        ledger.append_trial(make_trial("a"))
        assert [t.label for t in ledger.trials()] == ["a"]
        ledger.append_clock(1.0)
        ledger.append_trial(make_trial("b"))
        assert [t.label for t in ledger.trials()] == ["a", "b"] == [t.label for t in ledger.trials()]
    assert read == ["a", "b"]
    with opened(tmp_path / "t.jsonl") as ledger:
        assert [t.label for t in ledger.trials()] == ["a", "b"]
