"""Sessions that write text, for one stream or several at once: times of their answers, and the memory they take.

Takes functions that open a session in a worker, prompts and what is written after them; gives milliseconds and bytes.
First every side is looked at alone, in a process of its own, which says how much memory it takes and how long an
answer lasts. Then all sides answer the same prompts in turns, in fresh processes. A side that fails keeps its reason,
and the others go on. Knows no runtime.

Legend: S streams, the rows of one call; P tokens of a prompt, N tokens written after it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hasten.errors import DiskFull
from hasten.measure.duel import SETTLE_MS, widened
from hasten.measure.statistics import bootstrap
from hasten.measure.worker import OpenFacts, Worker, WorkerStats
from hasten.records import InputError, Interval, Rejected

_WARM_TOKENS = 8  # after a whole prompt: by then a runtime has seen its shapes and taken its memory
_WAKE_PROMPT, _WAKE_TOKENS = 8, 2
Arrays = Mapping[str, np.ndarray[Any, Any]]
Tell = Callable[[str, float, float | None], None]
Check = Callable[[Worker], str | None]


@dataclass(frozen=True, slots=True)
class Course:
    """What every side does: for each number of ``streams`` the answers to ``turns`` prompts in each of ``rounds``.

    ``prompts`` gives the arrays [S, P] of a number of streams and of the how-manieth answer; ``generation`` (the
    runtimes') says how many tokens are written, whatever they are. ``start`` makes a fresh worker.
    """

    streams: tuple[int, ...]
    prompts: Callable[[int, int], Arrays]
    generation: Any
    rounds: int
    turns: int
    start: Callable[[], Worker]


@dataclass(slots=True)
class Lane:
    """One side: how it is opened, and what was seen of it.

    ``spans`` are (milliseconds until the first tokens, until the last) by streams, ``memory`` that of its first
    process after an answer of so many streams and of fewer, ``refused`` the reasons by streams why there is nothing.
    """

    name: str
    open: Callable[[Worker], OpenFacts]
    precision: str = ""
    loads_s: list[float] = field(default_factory=list)
    spans: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    looked: dict[int, tuple[float, float]] = field(default_factory=dict)
    memory: dict[int, WorkerStats] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)

    def drop(self, streams: Sequence[int], reason: str) -> None:
        """There will be no figures of these."""
        for count in streams:
            self.refused[count] = reason
            self.spans.pop(count, None)

    def running(self, course: Course) -> list[int]:
        return [count for count in course.streams if count not in self.refused]


def look(lane: Lane, course: Course, *, check: Check | None = None) -> None:
    """Alone in a fresh process: opened, checked (a sentence is a refusal), one answer for each number of streams, few
    first, so that the peak after each is its own."""
    waiting = sorted(course.streams)
    try:
        with course.start() as worker:
            _open(lane, worker)
            wrong = check(worker) if check is not None else None
            if wrong is not None:
                raise Rejected("parity", wrong)
            while waiting:
                lane.looked[waiting[0]] = _answer(worker, course, waiting[0], 0)
                lane.memory[waiting[0]] = worker.stats()
                waiting.pop(0)
    except DiskFull:
        raise  # no side is to blame for it
    except (Rejected, InputError) as error:
        lane.drop(waiting, said(error))


def race(lanes: Sequence[Lane], course: Course, *, together: bool, tell: Tell) -> None:
    """All rounds. ``together``: every side's process is there at once and they take turns answer by answer; else one
    after the other in each round, where memory does not suffice for all."""
    pace = _Pace(lanes, course, tell)
    for number in range(course.rounds):
        order = [lanes[(number + place) % len(lanes)] for place in range(len(lanes))]
        for group in [order] if together else [[lane] for lane in order]:
            _round([lane for lane in group if lane.running(course)], course, number, pace)


def _round(lanes: Sequence[Lane], course: Course, number: int, pace: _Pace) -> None:
    with ExitStack() as held:
        workers = {id(lane): held.enter_context(course.start()) for lane in lanes}
        for lane in lanes:
            with _refusing(lane, course):
                _open(lane, workers[id(lane)])
                for count in lane.running(course):
                    _answer(workers[id(lane)], course, count, 0, tokens=_WARM_TOKENS)
        for turn in range(course.turns):
            for place in range(len(lanes)):
                lane = lanes[(turn + place) % len(lanes)]
                for count in lane.running(course):
                    pace.say(f"{lane.name}, {count} stream{'s' * (count != 1)}: round {number + 1} of {course.rounds}")
                    with _refusing(lane, course):
                        _wake(workers[id(lane)], course, count)
                        span = _answer(workers[id(lane)], course, count, 1 + number * course.turns + turn)
                        lane.spans.setdefault(count, []).append(span)
                    pace.done(lane, count)


class _refusing:
    """A failure within is the side's: it is left out from here on, and keeps the reason."""

    def __init__(self, lane: Lane, course: Course) -> None:
        self._lane, self._course = lane, course

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, DiskFull) or not isinstance(error, (Rejected, InputError)):
            return False
        self._lane.drop(self._lane.running(self._course), said(error))
        return True


def said(error: Rejected | InputError) -> str:
    """The reason in a line."""
    if isinstance(error, InputError):
        return f"{error.got} (expected: {error.expected})"
    return f"{error.stage}: {error.reason}"


def _open(lane: Lane, worker: Worker) -> None:
    facts = lane.open(worker)
    lane.precision = facts.precision
    lane.loads_s.append(facts.load_s)


def _answer(
    worker: Worker, course: Course, count: int, number: int, *, tokens: int | None = None
) -> tuple[float, float]:
    """(ms until the first tokens, ms until the last) of one call of ``count`` streams."""
    generation = course.generation
    if tokens is not None:
        generation = replace(generation, new_tokens=min(tokens, generation.new_tokens))
    ((whole_ms, first_ms),) = worker.spans([dict(course.prompts(count, number))], generation=generation)
    return first_ms, whole_ms


def _wake(worker: Worker, course: Course, count: int) -> None:
    """Short untimed calls, one at least and until the others' threads have gone to sleep, as in a duel's turn: this
    side has slept through theirs."""
    short = {name: array[:, -_WAKE_PROMPT:] for name, array in course.prompts(count, 0).items()}
    generation = replace(course.generation, new_tokens=min(_WAKE_TOKENS, course.generation.new_tokens))
    ((first_ms, _),) = worker.spans([short], generation=generation)
    more = math.ceil(SETTLE_MS / first_ms) - 1 if first_ms > 0 else 0
    if more > 0:
        worker.spans([short] * more, generation=generation)


class _Pace:
    """How much of the race is behind us, and how long the rest will take: by the first look's times, corrected by what
    the answers so far took."""

    def __init__(self, lanes: Sequence[Lane], course: Course, tell: Tell) -> None:
        self._course, self._tell, self._lanes = course, tell, lanes
        self._done_ms, self._started = 0.0, time.monotonic()

    def say(self, text: str) -> None:
        total = sum(
            self._expected(lane, count) * self._course.rounds * self._course.turns
            for lane in self._lanes for count in lane.running(self._course)
        )  # fmt: skip
        share = min(1.0, self._done_ms / total) if total else 1.0
        spent_s = time.monotonic() - self._started
        left_s = total / 1e3 if not share else spent_s * (1 - share) / share
        self._tell(text, share, left_s)

    def done(self, lane: Lane, count: int) -> None:
        if count not in lane.refused:
            self._done_ms += self._expected(lane, count)

    @staticmethod
    def _expected(lane: Lane, count: int) -> float:
        return lane.looked.get(count, (0.0, 0.0))[1]


# ------------------------------------------------------------------ figures


@dataclass(frozen=True, slots=True)
class Rates:
    """Medians with their 95 % intervals: tokens a second of all streams together, and milliseconds."""

    prefill_tok_s: Interval
    decode_tok_s: Interval
    ttft_ms: Interval
    tpot_ms: Interval
    answers: int


def rates(spans: Sequence[tuple[float, float]], *, streams: int, read: int, written: int, rounds: int) -> Rates:
    """Of answers of ``streams`` rows that ``read`` tokens each and wrote ``written``: two at least, since the first
    comes with the prompt."""
    first = np.array([span[0] for span in spans])
    step = np.array([(whole - begun) / (written - 1) for begun, whole in spans])
    return Rates(
        prefill_tok_s=median_of(streams * read * 1e3 / first, rounds=rounds),
        decode_tok_s=median_of(streams * 1e3 / step, rounds=rounds),
        ttft_ms=median_of(first, rounds=rounds),
        tpot_ms=median_of(step, rounds=rounds),
        answers=len(spans),
    )


def median_of(values: np.ndarray[Any, Any], *, rounds: int) -> Interval:
    """The median with a bootstrap over answers, widened as in a duel."""
    found = bootstrap(np.asarray(values, dtype=np.float64), lambda x, axis: np.median(x, axis=axis), seed=0)
    return widened(found, rounds=rounds)
