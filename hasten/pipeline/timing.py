"""How long each stage's duel lasts, and its times as one list.

Takes workers with open sessions and requests, gives rounds and milliseconds. A stage that decides more gets more
rounds of fresh processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hasten.measure.duel import Round, duel
from hasten.measure.worker import Worker
from hasten.measure.writing import per_token_ms
from hasten.records import Latency

QUICK_REQUESTS = 15
QUICK_ANSWERS = 3
_FEWEST_TURNS = 4
_DISTURBED = 1.5
_MOST_TRIES = 3
_PAUSE_S = 3.0
_STEADY_S = 1.0
_MOST_STEADY = 400


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a duel lasts: rounds of fresh processes, and about how many seconds of timed calls a round."""

    rounds: int
    seconds: float
    turns: int = 12

    def fewer_turns(self, expected_ms: float) -> int:
        """Turns for answers that take so long that all turns would take many times the seconds."""
        return int(np.clip(self.seconds * 1e3 / max(expected_ms, 1e-3), _FEWEST_TURNS, self.turns))

    def per_turn(self, expected_ms: float) -> int:
        """Requests a side per turn, for calls of ``expected_ms`` on both sides together."""
        return int(np.clip(self.seconds * 1e3 / max(expected_ms, 1e-3) / self.turns, 3, 25))


TIMINGS = {"screen": Timing(1, 4.0), "contest": Timing(2, 6.0), "final": Timing(3, 8.0)}


def side(rounds: Sequence[Round], name: str) -> list[float]:
    """All times of one side of a duel, in ms."""
    return [t for one in rounds for turn in getattr(one, name) for t in turn]


def timed_duel(
    a: Worker, b: Worker, requests: Callable[[int], list[dict[str, Any]]], timing: Timing, *, seed: int,
    generation: Any = None,
) -> Round:  # fmt: skip
    """One round that lasts about as long as ``timing`` says; ``requests`` draws that many. With a ``generation`` each
    request is a whole answer, one at a time where answers are long."""
    if generation is not None:
        return _written_duel(a, b, requests, timing, seed=seed, generation=generation)
    probe = requests(3)
    per_turn = timing.per_turn(float(np.median(a.time(probe)) + np.median(b.time(probe))))
    drawn = requests(timing.turns * per_turn)
    return duel(a, b, drawn, turns=timing.turns, per_turn=per_turn, warmup=min(10, 2 * per_turn), seed=seed)


def _written_duel(
    a: Worker, b: Worker, requests: Callable[[int], list[dict[str, Any]]], timing: Timing, *, seed: int, generation: Any
) -> Round:
    probe = requests(1)
    expected_ms = sum(worker.spans(probe, generation=generation)[0][0] for worker in (a, b))
    turns = timing.fewer_turns(expected_ms)
    per_turn = int(np.clip(timing.seconds * 1e3 / max(expected_ms, 1e-3) / turns, 1, 25))
    drawn = requests(turns * per_turn)
    return duel(a, b, drawn, turns=turns, per_turn=per_turn, warmup=1, seed=seed, generations=(generation, generation))


def quick_times(worker: Worker, requests: list[dict[str, Any]]) -> list[float]:
    """A first look, in milliseconds: enough to predict from, not to claim anything."""
    worker.time(requests[:3])
    return worker.time(requests)


def quick_spans(worker: Worker, requests: list[dict[str, Any]], generation: Any) -> list[tuple[float, float]]:
    """The same of answers: of each the whole, and until its first token."""
    worker.spans(requests[:1], generation=generation)
    return worker.spans(requests, generation=generation)


def first_and_further(rounds: Sequence[Round], name: str, tokens: int) -> tuple[list[float], list[float]]:
    """Of one side (``"a"`` or ``"b"``): ms until the first of ``tokens``, and a further token's of each answer."""
    whole, first = side(rounds, f"{name}_ms"), side(rounds, f"{name}_first_ms")
    each = [per_token_ms(w, f, tokens) for w, f in zip(whole, first, strict=True)]
    return first, [ms for ms in each if ms is not None]


def steady_times(worker: Worker, requests: Callable[[int], list[dict[str, Any]]]) -> list[float]:
    """Times of about a second of calls after as many to warm up: near enough to a duel's to be compared with one."""
    first = float(np.median(quick_times(worker, requests(QUICK_REQUESTS))))
    count = int(np.clip(_STEADY_S * 1e3 / max(first, 1e-3), QUICK_REQUESTS, _MOST_STEADY))
    worker.time(requests(count))
    return worker.time(requests(count))


def calm(measure: Callable[[], Round], *, usual: Latency | None) -> Round:
    """A round in which side a ran about as fast as ``usual``; at most three are tried, the calmest counts.

    A neighbour that takes the cores slows a model with many small parallel steps far more than one with few: the
    ratio of two disturbed sides can be wrong by a factor of ten, however well they are interleaved.
    """
    tried = [measure()]
    while usual is not None and _p50(tried[-1]) > _DISTURBED * usual.p50 and len(tried) < _MOST_TRIES:
        time.sleep(_PAUSE_S)
        tried.append(measure())
    return min(tried, key=_p50)


def _p50(one: Round) -> float:
    return float(np.median(side([one], "a_ms")))
