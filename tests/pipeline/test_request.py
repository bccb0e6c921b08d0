"""Arguments are settled before anything heavy starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hasten
from hasten.measure.host import usable_cores
from hasten.measure.worker import Worker
from hasten.pipeline.request import make_request, parse_cores, parse_time
from hasten.records import Columns, InputError

SPLITS = ("calibration_data", "selection_data", "test_data")


def request(**changes: Any) -> Any:
    arguments = {
        "task": "text-classification", "data": "rows.csv", "budget": "", "time": "1m", "out": Path("out"),
        "columns": Columns(),
    } | changes  # fmt: skip
    return make_request("model", **arguments)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1h30m", 5400), ("1.5 min", 90), (45, 45)])
def test_time(text: str | float, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "ten", "10", "5s", "-3m", "m", "1e99h", "10 m x", "nan", float("nan")])
def test_bad_time(text: str | float) -> None:
    with pytest.raises(InputError):
        parse_time(text)


@given(st.text(max_size=12))
def test_any_time_text_is_seconds_or_an_input_error(text: str) -> None:
    try:
        seconds = parse_time(text)
    except InputError:
        return
    assert seconds >= 20


@pytest.mark.parametrize("text", ["", "x", "0-", "-1", "0,,1", "9999", "1;2", "0-99999999999", "9" * 5000])
def test_bad_cores(text: str) -> None:
    with pytest.raises(InputError):
        parse_cores(text)


def test_cores() -> None:
    first = usable_cores()[0]
    assert parse_cores(None) == usable_cores()
    assert parse_cores(f"{first}") == (first,)
    assert parse_cores(f"{first}-{first},{first}") == (first,)


@pytest.mark.parametrize(
    "changes",
    [
        {"threads": 0}, {"threads": 999}, {"batch": 0}, {"concurrency": -1}, {"max_rows": 0}, {"max_length": 0},
        {"task": "text-clasification"}, {"data": None}, {"splits": ("a", None, None)}, {"splits": ("a", "b", "c")},
        {"budget": "p95<20"}, {"time": "soon"}, {"cores": "77"},
    ],
)  # fmt: skip
def test_bad_arguments_say_what_to_do(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="to do:"):
        request(**changes)


def test_time_and_budget_may_change_between_sittings_but_nothing_else() -> None:
    key = request().run_key
    assert request(time="2h", budget="p95_ms<=9").run_key == key
    assert request(seed=1).run_key != key
    assert request(data="other.csv").run_key != key
    assert request(batch=2).run_key != key


def test_extra_texts_come_from_a_file_or_any_iterable_and_never_from_judged_rows(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from hasten.pipeline.prepare import _extra
    from hasten.tasks import get_task
    from hasten.tasks.rows import Rows

    (tmp_path / "more.csv").write_text("text\nfresh\n JUDGED one\nfresh\n")
    rows = Rows(texts=("calibrated", "judged One"), pairs=None, labels=None, source="d", sha256="", column_names=())
    splits = SimpleNamespace(selection=(1,), test=())
    seen: list[str] = []
    tokenizer = SimpleNamespace(encode=seen.append)
    for source in (tmp_path / "more.csv", (t for t in ("fresh", "judged one", "Fresh"))):
        seen.clear()
        asked = make_request(
            "m", task="text-classification", data="d", budget="", time="1m", out="o", columns=Columns(),
            extra_data=source,
        )  # fmt: skip
        assert len(_extra(asked, get_task("text-classification"), rows, splits, tokenizer)) == 1  # type: ignore[arg-type]
        assert [t.casefold() for t in seen] == ["fresh"]


@pytest.mark.parametrize("names", [("no-such.csv",), ("rows.csv", "rows.csv", "no-such.csv")], ids=["one", "three"])
def test_a_wrong_path_waits_for_no_model(
    names: tuple[str, ...], checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.csv").write_text("text,label\na,no\nb,yes\n")
    paths = [str(tmp_path / name) for name in names]
    sources = {"data": paths[0]} if len(paths) == 1 else dict(zip(SPLITS, paths, strict=True))

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a process was started")

    monkeypatch.setattr(Worker, "start", never)
    with pytest.raises(InputError, match="no such file"):
        hasten.optimize(checkpoint("bert"), task="text-classification", out=tmp_path / "out", **sources)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_duel_refuses_a_seed_before_anything_is_loaded() -> None:
    with pytest.raises(InputError, match="--seed -1"):
        hasten.bench("nothing", data="nothing.csv", seed=-1)
