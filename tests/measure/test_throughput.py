"""Throughput: counts rows, scales where the session lets it, and fails as the session fails."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from sessions_for_tests import FakeSession, SleepySession

from hasten.measure.throughput import closed_loop, joined, loop_s, throughput
from hasten.measure.worker import Worker
from hasten.records import InputError, Rejected

REQUESTS = [{"input_ids": np.ones((1, n), np.int64)} for n in (3, 5, 2, 4)]


def test_requests_are_joined_to_the_batch_and_padded_with_zeros() -> None:
    made = joined(REQUESTS, batch=2)
    assert [one["input_ids"].shape for one in made] == [(2, 5), (2, 4)]
    np.testing.assert_array_equal(made[0]["input_ids"], [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    assert [one["input_ids"].shape for one in joined(REQUESTS, batch=3)] == [(3, 5)]
    assert [one["input_ids"].shape for one in joined(REQUESTS, batch=9)] == [(4, 5)]
    assert [one["input_ids"].shape for one in joined(REQUESTS, batch=1)] == [(1, 3), (1, 5), (1, 2), (1, 4)]


def test_callers_that_wait_scale_and_rows_are_counted() -> None:
    rows, spent_s = closed_loop(SleepySession(), requests=joined(REQUESTS, batch=2), concurrency=1, seconds=0.3)
    alone = rows / spent_s
    assert 140 < alone < 205, "10 ms for 2 rows"
    rows, spent_s = closed_loop(SleepySession(), requests=joined(REQUESTS, batch=2), concurrency=4, seconds=0.3)
    assert 3.0 < rows / spent_s / alone < 4.5


class FailsLater(FakeSession):
    calls = 0

    def run(self, arrays: object) -> np.ndarray:  # noqa: ARG002
        self.calls += 1
        if self.calls > 3:
            raise ValueError("broken")
        return np.zeros((1, 1), np.float32)


class FailsInOneThread(FakeSession):
    def __init__(self) -> None:
        super().__init__()
        self.first = threading.get_ident()
        self.seen: set[int] = set()

    def run(self, arrays: object) -> np.ndarray:  # noqa: ARG002
        self.seen.add(threading.get_ident())
        if len(self.seen) > 1:
            raise ValueError("one thread only")
        return np.zeros((1, 1), np.float32)


@pytest.mark.parametrize("session", [FailsLater(), FailsInOneThread()])
def test_a_failing_caller_ends_the_loop(session: FakeSession) -> None:
    with pytest.raises(ValueError, match=r"broken|one thread only"):
        closed_loop(session, requests=REQUESTS, concurrency=3, seconds=30.0)


def test_through_a_worker() -> None:
    with Worker.start(cores=(), threads=1) as worker:
        worker.open("sessions_for_tests:open_sleepy")
        assert 150 < throughput(worker, REQUESTS, concurrency=2, seconds=0.3, batch=1) < 205
        worker.open("sessions_for_tests:open_failing")
        with pytest.raises(Rejected, match="no kernel"):
            throughput(worker, REQUESTS, concurrency=2, seconds=0.3, batch=1)
        with pytest.raises(InputError):
            throughput(worker, [], concurrency=1, seconds=0.3, batch=1)


@pytest.mark.parametrize(("ms", "seconds"), [([3.0, 4.0, 5.0], 1.5), ([900.0, 1000.0, 1100.0], 5.0)])
def test_a_loop_lasts_for_several_requests(ms: list[float], seconds: float) -> None:
    assert loop_s(ms, least_s=1.5) == pytest.approx(seconds)
