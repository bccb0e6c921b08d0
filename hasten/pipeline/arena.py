"""Where sessions meet: processes on the run's cores, the requests they are given, and their duels.

Takes functions that open a candidate in a worker, gives rounds and milliseconds. Knows no recipes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hasten.measure.duel import Round
from hasten.measure.worker import Worker
from hasten.pipeline.jobs import Arrays
from hasten.pipeline.prepare import Prepared
from hasten.pipeline.request import Request
from hasten.pipeline.timing import QUICK_REQUESTS, Timing, calm, quick_times, steady_times, timed_duel
from hasten.records import Latency

Open = Callable[[Worker], None]


class Arena:
    """``open_baseline`` opens the original in a worker: the standing opponent of short duels."""

    def __init__(self, request: Request, prepared: Prepared, log: Path, open_baseline: Open) -> None:
        self.request, self.prepared, self.log = request, prepared, log
        self._open_baseline = open_baseline
        self._opponent: Worker | None = None

    def worker(self) -> Worker:
        """A fresh process."""
        workload = self.request.workload
        return Worker.start(cores=workload.cores, threads=workload.threads, log=self.log)

    def requests(self, count: int, *, seed: int = 0) -> list[Arrays]:
        """``count`` requests of the user's real lengths."""
        workload = self.request.workload
        return self.prepared.requests(batch=workload.batch, count=count, seed=workload.seed + seed)

    def rounds(self, open_a: Open, open_b: Open, timing: Timing, *, usual: Latency | None) -> list[Round]:
        """a against b in fresh pairs of processes; ``usual`` is what a takes when nothing disturbs it."""
        found: list[Round] = []
        for number in range(timing.rounds):
            with self.worker() as first, self.worker() as second:
                open_a(first)
                open_b(second)
                found.append(self._duel(first, second, timing, seed=number, usual=usual))
        return found

    def screen(self, worker: Worker, timing: Timing, *, usual: Latency | None) -> Round:
        """One round of the open session in ``worker`` against the original's standing process."""
        if self._opponent is None:
            self._opponent = self.worker()
            self._open_baseline(self._opponent)
        return self._duel(self._opponent, worker, timing, seed=0, usual=usual)

    def quick(self, worker: Worker) -> list[float]:
        """Milliseconds of a few requests: a first look."""
        return quick_times(worker, self.requests(QUICK_REQUESTS))

    def steady(self, worker: Worker) -> list[float]:
        """Milliseconds of many requests, warm."""
        return steady_times(worker, self.requests)

    def lost_opponent(self) -> bool:
        """Did the standing opponent die? Then it is let go, and the next screen opens it afresh."""
        if self._opponent is None or self._opponent.alive:
            return False
        self.close()
        return True

    def close(self) -> None:
        if self._opponent is not None:
            self._opponent.close()
        self._opponent = None

    def _duel(self, a: Worker, b: Worker, timing: Timing, *, seed: int, usual: Latency | None) -> Round:
        def once() -> Round:
            return timed_duel(
                a, b, lambda count: self.requests(count, seed=seed), timing, seed=self.request.workload.seed + seed
            )

        return calm(once, usual=usual)
