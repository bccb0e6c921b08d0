"""Sides that write are looked at alone, then race in turns; one that fails keeps its reason, and the others go on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hasten.errors import DiskFull
from hasten.measure.duel import SETTLE_MS
from hasten.measure.streams import Course, Lane, look, race, rates
from hasten.measure.worker import OpenFacts, WorkerStats
from hasten.records import InputError, Rejected
from hasten.runtimes.generation import Generation

READ, WRITTEN = 20, 11


class Fake:
    """A worker without a process: ``fails`` says at which of its calls a side falls."""

    def __init__(self, log: list[Any], fails: Callable[[str, int, int], str | None]) -> None:
        self.log, self.fails, self.name, self.calls = log, fails, "", 0

    def __enter__(self) -> Fake:
        self.log.append("start")
        return self

    def __exit__(self, *error: object) -> None:
        self.log.append("end")

    def open(self, name: str) -> OpenFacts:
        self.name = name
        return OpenFacts(load_s=0.5, precision="fp32", input_names=("input_ids",), peak_rss_bytes=1, rss_before_bytes=1)

    def spans(self, batches: Any, *, generation: Generation) -> list[tuple[float, float]]:
        assert generation.ignore_ends
        streams, tokens = batches[0]["input_ids"].shape
        self.calls += 1
        reason = self.fails(self.name, streams, self.calls)
        if reason is not None:
            raise Rejected("memory", reason)
        said = (self.name, streams, tokens, generation.new_tokens, int(batches[0]["input_ids"][0, 0]))
        self.log += [said] * len(batches)
        return [(10.0 * streams + generation.new_tokens, 10.0 * streams)] * len(batches)

    def stats(self) -> WorkerStats:
        return WorkerStats(peak_rss_bytes=1000 * self.calls, rss_bytes=500, cpu_s=1.0)


def nothing(name: str, streams: int, call: int) -> str | None:
    del name, streams, call
    return None


def course(log: list[Any], *, fails: Callable[[str, int, int], str | None] = nothing, **changes: Any) -> Course:
    def prompts(streams: int, number: int) -> dict[str, Any]:
        return {"input_ids": np.full((streams, READ), number)}

    usual = {"streams": (1, 4), "rounds": 2, "turns": 1, "prompts": prompts}
    start: Any = lambda: Fake(log, fails)  # noqa: E731
    return Course(**{**usual, **changes}, generation=Generation(WRITTEN, ignore_ends=True), start=start)  # type: ignore[arg-type]


def lane(name: str) -> Lane:
    return Lane(name, lambda worker: worker.open(name))  # type: ignore[arg-type]


def quiet(text: str, share: float, left_s: float | None) -> None:
    del text, share, left_s


def test_the_first_look_is_alone_and_few_streams_come_first() -> None:
    log: list[Any] = []
    one = lane("a")
    look(one, course(log, streams=(4, 1)))
    assert log == ["start", ("a", 1, READ, WRITTEN, 0), ("a", 4, READ, WRITTEN, 0), "end"]
    assert {n: m.peak_rss_bytes for n, m in one.memory.items()} == {1: 1000, 4: 2000}
    assert one.looked == {1: (10.0, 21.0), 4: (40.0, 51.0)}


def test_too_many_streams_are_refused_and_fewer_stay() -> None:
    log: list[Any] = []
    one = lane("a")
    held = course(log, fails=lambda *of: "no room" if of[1] == 4 else None)
    look(one, held)
    assert one.refused == {4: "memory: no room"}
    assert one.running(held) == [1]


def test_what_is_not_the_model_is_not_timed() -> None:
    log: list[Any] = []
    one = lane("a")
    look(one, course(log), check=lambda _: "cosine with eager is 0.1")
    assert one.refused == dict.fromkeys((1, 4), "parity: cosine with eager is 0.1")
    assert log == ["start", "end"]


def test_sides_take_turns_on_the_same_prompts() -> None:
    log: list[Any] = []
    held, lanes = course(log, streams=(2,), turns=2), [lane("a"), lane("b")]
    race(lanes, held, together=True, tell=quiet)
    timed = [entry for entry in log if isinstance(entry, tuple) and entry[3] == WRITTEN]
    assert [(name, prompt) for name, _, _, _, prompt in timed] == [
        ("a", 1), ("b", 1), ("b", 2), ("a", 2), ("b", 3), ("a", 3), ("a", 4), ("b", 4),
    ]  # fmt: skip
    assert [len(one.spans[2]) for one in lanes] == [4, 4]
    woken = [entry for entry in log if isinstance(entry, tuple) and entry[3] == 2]
    assert len(woken) == len(timed)
    assert log[:2] == ["start", "start"]
    assert all(len(one.loads_s) == 2 for one in lanes)


def test_a_side_that_is_fast_is_woken_until_the_others_sleep() -> None:
    """12 ms are the untimed call of one stream here, and 22 that of two."""
    log: list[Any] = []
    race([lane("a")], course(log, streams=(1, 2), rounds=1), together=True, tell=quiet)
    woken = [entry[1] for entry in log if isinstance(entry, tuple) and entry[3] == 2]
    assert woken == [1] * math.ceil(SETTLE_MS / 12) + [2]
    assert woken == [1, 1, 2]


def test_without_room_for_all_one_runs_after_the_other() -> None:
    log: list[Any] = []
    race([lane("a"), lane("b")], course(log, streams=(2,)), together=False, tell=quiet)
    order = [entry if isinstance(entry, str) else entry[0] for entry in log]
    assert order == [w for name in "abba" for w in ("start", name, name, name, "end")]


def test_one_that_falls_keeps_its_reason_and_the_others_go_on() -> None:
    def fails(name: str, _streams: int, call: int) -> str | None:
        return "died" if name == "a" and call > 3 else None

    log: list[Any] = []
    lanes = [lane("a"), lane("b")]
    race(lanes, course(log, fails=fails), together=True, tell=quiet)
    assert lanes[0].refused == dict.fromkeys((1, 4), "memory: died")
    assert not lanes[0].spans
    assert {n: len(spans) for n, spans in lanes[1].spans.items()} == {1: 2, 4: 2}


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), DiskFull("a", expected="b", remedy="c")], ids=["^C", "disk"])
def test_what_is_no_refusal_is_not_swallowed(fault: BaseException) -> None:
    def fails(*_of: object) -> str | None:
        raise fault

    log: list[Any] = []
    with pytest.raises(type(fault)):
        race([lane("a")], course(log, fails=fails), together=True, tell=quiet)
    with pytest.raises(type(fault)):
        look(lane("a"), course(log, fails=fails))
    assert log == ["start", "end"] * 2


def test_bad_input_found_by_a_session_is_a_reason() -> None:
    def refusing(_worker: Any) -> OpenFacts:
        raise InputError("a prompt of 9 tokens", expected="at most 4", remedy="shorten it")

    one = Lane("a", refusing)
    look(one, course([]))
    assert set(one.refused.values()) == {"a prompt of 9 tokens (expected: at most 4)"}


def test_rates_are_of_all_streams_together() -> None:
    found = rates([(100.0, 300.0), (200.0, 600.0), (50.0, 90.0)], streams=4, read=50, written=11, rounds=1)
    assert found.ttft_ms.estimate == 100.0
    assert found.prefill_tok_s.estimate == pytest.approx(4 * 50 / 0.1)
    assert found.tpot_ms.estimate == 20.0
    assert found.decode_tok_s.estimate == pytest.approx(4 / 0.02)
    assert found.tpot_ms.low <= 4.0 / 1.0199
    assert found.tpot_ms.high >= 40.0
    assert found.answers == 3


def test_one_answer_has_the_doubt_of_one_process() -> None:
    found = rates([(100.0, 300.0)], streams=1, read=50, written=11, rounds=1)
    assert (found.ttft_ms.low, found.ttft_ms.high) == pytest.approx((100 / 1.02, 102.0))


def test_progress_goes_from_nothing_to_all_and_time_left_falls() -> None:
    told: list[tuple[float, float | None]] = []
    lanes, held = [lane("a"), lane("b")], course([], rounds=3)
    for one in lanes:
        look(one, held)
    race(lanes, held, together=True, tell=lambda _, share, left_s: told.append((share, left_s)))
    shares = [share for share, _ in told]
    assert shares[0] == 0.0
    assert shares == sorted(shares)
    assert shares[-1] > 0.7
    assert all(left_s is not None and left_s >= 0 for _, left_s in told)
