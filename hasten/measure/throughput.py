"""Rows per second under a closed loop of concurrent callers.

Takes a worker with an open session and the requests; gives one rate. The loop runs inside the child, so
neither pipes nor pickling are in it. Knows no runtime.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.measure.worker import Worker
from hasten.measure.writing import answered
from hasten.records import InputError

if TYPE_CHECKING:
    from hasten.measure.worker_main import Session

GRACE_S = 300.0  # beyond the asked time before the child counts as hung


def throughput(
    worker: Worker, requests: Sequence[Mapping[str, Any]], *, concurrency: int, seconds: float, batch: int,
    generation: Any = None,
) -> float:  # fmt: skip
    """Rows per second with ``concurrency`` callers, each sending the next request when its last returned.

    Requests of fewer than ``batch`` rows are joined up to it, padded with zeros at the end; where text is written
    (``generation``) they stay as they are, since its prompts end where the text begins.
    """
    if not requests or concurrency < 1 or batch < 1 or seconds <= 0:
        raise InputError(
            f"{len(requests)} requests, concurrency {concurrency}, batch {batch}, {seconds} s",
            expected="at least one request, one caller, one row and some time",
            remedy="correct the workload",
        )
    rows, spent_s = worker.call_with_session(
        "hasten.measure.throughput:closed_loop",
        timeout_s=seconds + GRACE_S,
        requests=joined(requests, batch=batch) if generation is None else list(requests),
        concurrency=concurrency,
        seconds=seconds,
        generation=generation,
    )
    return float(rows) / float(spent_s)


def joined(requests: Sequence[Mapping[str, Any]], *, batch: int) -> list[dict[str, np.ndarray]]:
    """Consecutive requests put together until each has at least ``batch`` rows; the remainder is dropped
    unless it is all there is."""
    made: list[dict[str, np.ndarray]] = []
    waiting: list[Mapping[str, Any]] = []
    for request in requests:
        waiting.append(request)
        if sum(_rows(one) for one in waiting) >= batch:
            made.append(_stacked(waiting))
            waiting = []
    return made or [_stacked(waiting)]


def closed_loop(
    session: Session, *, requests: Sequence[Mapping[str, Any]], concurrency: int, seconds: float,
    generation: Any = None,
) -> tuple[int, float]:  # fmt: skip
    """(rows done, seconds they took) in this process; one untimed pass of each caller comes first."""
    started: list[float] = []
    ready = threading.Barrier(concurrency, action=lambda: started.append(time.perf_counter()))
    counts, ends = [0] * concurrency, [0.0] * concurrency
    failures: list[Exception] = []

    def caller(number: int) -> None:
        def send(position: int) -> int:
            request = _wanted(session, requests[position % len(requests)])
            answered(session, request, generation)
            return _rows(request)

        try:
            send(number)
            ready.wait()
            position = number
            while not failures and time.perf_counter() < started[0] + seconds:
                counts[number] += send(position)
                ends[number] = time.perf_counter()
                position += concurrency
        except threading.BrokenBarrierError:
            return  # another caller failed while warming up, and has said why
        except Exception as error:
            failures.append(error)
            ready.abort()

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return sum(counts), max(ends) - started[0]


def _wanted(session: Session, request: Mapping[str, Any]) -> dict[str, Any]:
    return {name: request[name] for name in session.input_names}


def _rows(request: Mapping[str, Any]) -> int:
    return len(next(iter(request.values())))


def _stacked(requests: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    if len(requests) == 1:
        return dict(requests[0])
    return {name: _padded([np.asarray(one[name]) for one in requests]) for name in requests[0]}


def _padded(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays of shape [rows, length] over each other, shorter ones filled with zeros."""
    width = max(array.shape[1] for array in arrays)
    return np.concatenate([np.pad(array, ((0, 0), (0, width - array.shape[1]))) for array in arrays])
