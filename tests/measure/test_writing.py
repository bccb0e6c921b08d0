"""Answers token by token: ids up to their ends, the time of the first token and of the whole."""

from __future__ import annotations

import os

import numpy as np
import pytest
from sessions_for_tests import Asked, Writer

from hasten.measure.duel import duel, speedup
from hasten.measure.energy import energy
from hasten.measure.throughput import throughput
from hasten.measure.worker import Worker
from hasten.measure.writing import answered, ended, per_token_ms, written

REQUESTS = [{"input_ids": np.array([[n, n + 1], [n, n]])} for n in range(1, 7)]
CORES = tuple(sorted(os.sched_getaffinity(0)))[:1] if hasattr(os, "sched_getaffinity") else ()


def test_nothing_stands_behind_an_end() -> None:
    ids = np.array([[7, 5, 7, 5], [5, 1, 1, 1], [1, 2, 3, 4]])
    assert ended(ids, (5,)).tolist() == [[7, 5, -1, -1], [5, -1, -1, -1], [1, 2, 3, 4]]
    assert ended(ids, ()).tolist() == ids.tolist()


def test_an_answer_has_its_times() -> None:
    ids, first_ms, whole_ms = written(Writer(0.02, 0.01), REQUESTS[0], Asked(5, ends=(4,)))
    assert ids.tolist() == [[2, 3, 4, -1, -1], [1, 2, 3, 4, -1]]
    assert 20 <= first_ms < 60
    assert 60 <= whole_ms < 150
    assert per_token_ms(whole_ms, first_ms, 5) == pytest.approx((whole_ms - first_ms) / 4)
    assert per_token_ms(20.0, 20.0, 1) is None


def test_ends_can_be_ignored_and_runs_stay_runs() -> None:
    assert answered(Writer(), REQUESTS[0], Asked(4, ends=(3,), ignore_ends=True)).shape == (2, 4)
    assert answered(Writer(), REQUESTS[0], None).dtype == np.float32


def test_workers_write_time_and_are_compared() -> None:
    asked, opener = Asked(4, ignore_ends=True), "sessions_for_tests:open_writer"
    with Worker.start(cores=CORES, threads=1) as a, Worker.start(cores=CORES, threads=1) as b:
        for worker, first_s, each_s in ((a, 0.006, 0.004), (b, 0.002, 0.002)):
            worker.open(opener, first_s=first_s, each_s=each_s)
        (ids,) = a.run(REQUESTS[:1], generation=asked)
        assert ids.tolist() == [[2, 3, 4, 5], [1, 2, 3, 4]]
        ((whole_ms, first_ms),) = a.spans(REQUESTS[:1], generation=asked)
        assert 6 <= first_ms < 40  # a busy machine wakes late
        assert 12 <= whole_ms - first_ms < 60
        one = duel(a, b, REQUESTS, turns=4, per_turn=2, warmup=1, seed=0, generations=(asked, asked))
        assert np.shape(one.a_ms) == np.shape(one.a_first_ms) == (4, 2)
        assert speedup([one]).estimate == pytest.approx(18 / 8, rel=0.4)
        assert 2 <= np.median(one.b_first_ms) < 5
        rate = throughput(a, REQUESTS, concurrency=1, seconds=0.3, batch=2, generation=asked)
        assert 0.3 * 2 / 0.018 < rate < 1.05 * 2 / 0.018
        assert energy(a, REQUESTS, cores_used=1, seconds=0.3, generation=asked) is not None
