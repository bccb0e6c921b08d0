"""Where sessions meet: processes on the run's cores, the requests they are given, and their duels.

Takes functions that open a candidate in a worker, gives rounds and milliseconds. Knows no recipes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from hasten.bundle.answers import SCORED_TOGETHER, measured, scored
from hasten.measure.duel import Round
from hasten.measure.statistics import latency
from hasten.measure.worker import Worker
from hasten.measure.writing import FORCED
from hasten.pipeline.jobs import Arrays
from hasten.pipeline.prepare import Part, Prepared, each_batch
from hasten.pipeline.request import Request
from hasten.pipeline.timing import (
    QUICK_ANSWERS,
    QUICK_REQUESTS,
    Timing,
    calm,
    first_and_further,
    quick_spans,
    quick_times,
    side,
    steady_times,
    timed_duel,
)  # fmt: skip
from hasten.records import Figures, Latency

Open = Callable[[Worker], None]
_SHARE = 16


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds of requests; where text is written also until each one's first token, and a further token's."""

    whole: tuple[float, ...]
    first: tuple[float, ...] = ()
    further: tuple[float, ...] = ()

    def put_into(self, figures: Figures) -> Figures:
        """The figures with these times; those of one token have no further one."""
        return replace(
            figures, latency_ms=latency(self.whole), ttft_ms=latency(self.first) if self.first else None,
            tpot_ms=latency(self.further) if self.further else None,
        )  # fmt: skip


def times_of(rounds: Sequence[Round], name: str, tokens: int | None) -> Times:
    """One side (``"a"`` or ``"b"``) of all rounds; ``tokens`` that each answer has, where text is written."""
    whole = tuple(side(rounds, f"{name}_ms"))
    if tokens is None:
        return Times(whole)
    first, further = first_and_further(rounds, name, tokens)
    return Times(whole, tuple(first), tuple(further))


def in_shares(worker: Worker, batches: Iterable[Arrays], *, generation: Any = None) -> list[np.ndarray[Any, Any]]:
    """What ``worker.run`` gives, for a few batches at a time (one, where answers are written): the time limit is that
    of a share, and no more than a share is sent at once."""
    waiting, made = iter(batches), list[np.ndarray[Any, Any]]()
    while some := list(islice(waiting, _SHARE if generation is None else 1)):
        made += worker.run(some, generation=generation)
    return made


def compared(worker: Worker, batches: Sequence[Arrays]) -> list[np.ndarray[Any, Any]]:
    """The session's outputs on parity batches; where text is written the logits of every step, through its cache."""
    if not any(FORCED in batch for batch in batches):
        return worker.run(batches)
    found: list[np.ndarray[Any, Any]] = worker.call_with_session("hasten.measure.writing:forced", batches=list(batches))
    return found


class Arena:
    """``open_baseline`` opens the original in a worker: the standing opponent of short duels. ``affordable``: to how
    many rows there is time to write answers."""

    def __init__(self, request: Request, prepared: Prepared, log: Path, open_baseline: Open) -> None:
        self.request, self.prepared, self.log = request, prepared, log
        self._open_baseline = open_baseline
        self._opponent: Worker | None = None
        self.affordable = 0

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

    def outputs(self, worker: Worker, part: Part, *, reference: Any = None) -> np.ndarray[Any, Any]:
        """The session's outputs [N, ...] on a part's rows, at the batch size that is asked for; answers, which take
        long, are written at least eight at a time. Without references an answer is what the session would take in the
        place of each token of the original's, ``reference`` [N or more, T]."""
        answers, batch = self.prepared.answers, self.request.workload.batch
        size = batch if answers is None else max(batch, SCORED_TOGETHER)
        batches = each_batch(part.encoded, self.prepared.input_names, batch=size)
        if answers is None or reference is None or not self.prepared.task.forced:
            return self.prepared.outputs(part, in_shares(worker, batches, generation=scored(answers)))
        made: list[np.ndarray[Any, Any]] = []
        for number, arrays in enumerate(batches):
            own = reference[number * size : min((number + 1) * size, len(part))]
            made += worker.call_with_session(
                "hasten.measure.writing:ranked_first", batches=[{**arrays, FORCED: own}], generation=answers.scored
            )
        return self.prepared.outputs(part, made)

    def answers_of_original(self, part: Part) -> np.ndarray[Any, Any]:
        """What the original writes to as many of the first rows as there is time for [N, T]."""
        with self.worker() as worker:
            self._open_baseline(worker)
            return self.outputs(worker, part.head(self.affordable))

    def quick(self, worker: Worker) -> Times:
        """A few requests: a first look."""
        return self._answers(worker) or Times(tuple(quick_times(worker, self.requests(QUICK_REQUESTS))))

    def steady(self, worker: Worker) -> Times:
        """Many requests, warm; of answers, which are long, a few."""
        return self._answers(worker) or Times(tuple(steady_times(worker, self.requests)))

    def of_side(self, rounds: Sequence[Round], name: str) -> Times:
        """All times of one side (``"a"`` or ``"b"``) of its duels."""
        answers = self.prepared.answers
        return times_of(rounds, name, None if answers is None else answers.timed)

    def _answers(self, worker: Worker) -> Times | None:
        """Of whole answers, where text is written."""
        answers = self.prepared.answers
        if answers is None:
            return None
        spans = quick_spans(worker, self.requests(QUICK_ANSWERS), answers.measured)
        one = Round((tuple(w for w, _ in spans),), (), (tuple(f for _, f in spans),))
        return self.of_side([one], "a")

    def peak_bytes(self, worker: Worker) -> int | None:
        """Where text is written: peak memory after an answer to the longest prompt, as yet of nothing else."""
        if self.prepared.answers is None:
            return None
        longest = self.prepared.longest_request(batch=self.request.workload.batch)
        worker.run([longest], generation=self.prepared.answers.measured)
        return worker.stats().peak_rss_bytes

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
                a, b, lambda count: self.requests(count, seed=seed), timing,
                seed=self.request.workload.seed + seed, generation=measured(self.prepared.answers),
            )  # fmt: skip

        return calm(once, usual=usual)
