"""Which of two sessions is faster, measured in the same breath.

Takes two workers with open sessions and the requests of the workload; gives their times turn by turn, and
from one or more such rounds (fresh processes each) the ratio of medians with its interval. Knows no runtime.

Machines drift, so the two sides alternate in short turns on the same requests. Times within a turn are
correlated, so whole turns are resampled and not requests. A process keeps a speed of its own for its whole
life (memory layout, page placement), so rounds are resampled too, and since a bootstrap over one or a few
rounds is too narrow, the interval is widened by what they cannot show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hasten.measure.statistics import LEVEL, RESAMPLES, require
from hasten.measure.worker import CALL_TIMEOUT_S, Worker
from hasten.records import InputError, Interval

NOISE_FLOOR = 0.03  # a ratio nearer to 1 than this is never called a difference
PROCESS_SPREAD = 0.02  # what one pair of processes may differ by for its whole life, unseen by its turns
# A side that is done leaves threads that wait for more work on the other's cores (OpenMP's, ONNX Runtime's) about so
# long. Who comes next would wait for them, and the faster it is the larger a share of its times that would be.
SETTLE_MS = 20.0

BATCH = 100  # resamples worked on together; bounds memory


@dataclass(frozen=True, slots=True)
class Round:
    """Milliseconds of both sides, turns x requests; turn i of ``a`` and of ``b`` ran the same requests.

    Where text is written they are of whole answers, and ``a_first_ms`` and ``b_first_ms`` until their first tokens.
    """

    a_ms: tuple[tuple[float, ...], ...]
    b_ms: tuple[tuple[float, ...], ...]
    a_first_ms: tuple[tuple[float, ...], ...] = ()
    b_first_ms: tuple[tuple[float, ...], ...] = ()


def duel(
    a: Worker,
    b: Worker,
    requests: Sequence[Mapping[str, Any]],
    *,
    turns: int,
    per_turn: int,
    warmup: int,
    seed: int,
    for_b: Sequence[Mapping[str, Any]] | None = None,
    generations: tuple[Any, Any] = (None, None),
    timeout_s: float | None = CALL_TIMEOUT_S,
    progress: Callable[[int, int], None] | None = None,
) -> Round:
    """One round: ``turns`` turns of ``per_turn`` requests drawn by ``seed``, each on both sides.

    ``warmup`` requests per side come first, untimed. Who begins a turn alternates, and each side's is a :func:`turn`
    with untimed requests of its own, because it has slept. ``for_b`` are the same requests as ``b`` takes them, where
    the sides tokenize differently; ``generations`` what each side writes.
    ``timeout_s`` bounds one side's turn (Rejected beyond it); ``progress`` hears (turns done, turns).
    """
    asked = (requests, requests if for_b is None else for_b)
    if not requests or turns < 1 or per_turn < 1 or len(asked[0]) != len(asked[1]):
        raise InputError(
            f"{len(requests)} requests, {turns} turns of {per_turn}",
            expected="at least one of each",
            remedy="give the duel more rows or more time",
        )
    draw = np.random.default_rng(seed)
    sides = (a, b)
    usual = [
        _median(_spans(worker, [own[i % len(own)] for i in range(warmup)], what, timeout_s))
        for worker, own, what in zip(sides, asked, generations, strict=True)
    ]
    times: tuple[list[tuple[float, ...]], list[tuple[float, ...]]] = ([], [])
    firsts: tuple[list[tuple[float, ...]], list[tuple[float, ...]]] = ([], [])
    for number in range(turns):
        few = per_turn > len(requests)
        drawn = draw.choice(len(requests), size=per_turn, replace=few)
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            chosen = [asked[side][i] for i in drawn]
            spans = turn(
                sides[side], chosen, usual_ms=usual[side], generation=generations[side], timeout_s=timeout_s
            )  # fmt: skip
            usual[side] = _median(spans)
            times[side].append(tuple(whole for whole, _ in spans))
            firsts[side].append(tuple(first for _, first in spans))
        if progress is not None:
            progress(number + 1, turns)
    if generations == (None, None):
        return Round(a_ms=tuple(times[0]), b_ms=tuple(times[1]))
    return Round(tuple(times[0]), tuple(times[1]), tuple(firsts[0]), tuple(firsts[1]))


def turn(
    worker: Worker,
    chosen: Sequence[Mapping[str, Any]],
    *,
    usual_ms: float,
    generation: Any = None,
    timeout_s: float | None = CALL_TIMEOUT_S,
) -> list[tuple[float, float]]:
    """Milliseconds of each request (whole, until the first token), after untimed ones: one at least, and at
    ``usual_ms`` each as many as fill ``SETTLE_MS``."""
    untimed = max(1, math.ceil(SETTLE_MS / usual_ms)) if usual_ms > 0 else 1
    lead = [chosen[i % len(chosen)] for i in range(untimed)]
    return _spans(worker, [*lead, *chosen], generation, timeout_s)[untimed:]


def _median(spans: Sequence[tuple[float, float]]) -> float:
    return float(np.median([whole for whole, _ in spans])) if spans else 0.0


def _spans(
    worker: Worker, requests: Sequence[Mapping[str, Any]], generation: Any, timeout_s: float | None
) -> list[tuple[float, float]]:
    """(whole, until the first token) of each; both the same where no text is written."""
    if generation is None:
        return [(ms, ms) for ms in worker.time(requests, timeout_s=timeout_s)]
    return worker.spans(requests, generation=generation, timeout_s=timeout_s)


def speedup(rounds: Sequence[Round], *, seed: int = 0) -> Interval:
    """How many times faster ``b`` is than ``a``: p50(a) / p50(b), geometric mean over rounds, with 95 %.

    The bootstrap resamples rounds (when there are several) and the turns inside them.
    """
    pairs = [_arrays(one) for one in rounds]
    if not pairs:
        raise InputError("no rounds", expected="at least one round of a duel", remedy="measure before comparing")
    estimate = math.exp(sum(float(_log_ratio(a, b)) for a, b in pairs) / len(pairs))
    low, high = _bounds(pairs, seed) if len(pairs) > 1 or len(pairs[0][0]) > 1 else (estimate, estimate)
    return widened(Interval(estimate, min(low, estimate), max(high, estimate)), rounds=len(pairs))


def widened(found: Interval, *, rounds: int) -> Interval:
    """The interval with what so few pairs of processes cannot show."""
    unseen = 1 + PROCESS_SPREAD / rounds
    return Interval(found.estimate, found.low / unseen, found.high * unseen)


def claims_speedup(interval: Interval) -> bool:
    """Whether the whole interval lies above the noise floor: may one say "faster"?"""
    return interval.low > 1 + NOISE_FLOOR


def claims_slowdown(interval: Interval) -> bool:
    """Whether the whole interval lies below the noise floor: must one say "slower"?"""
    return interval.high < 1 / (1 + NOISE_FLOOR)


Pair = tuple[np.ndarray, np.ndarray]


def _bounds(pairs: Sequence[Pair], seed: int) -> tuple[float, float]:
    from scipy import stats

    draw = np.random.default_rng(seed)
    alone = len(pairs) == 1

    def resampled(indices: np.ndarray, axis: int = -1) -> np.ndarray:
        assert axis == -1
        if alone:
            return _log_ratio(*(times[indices] for times in pairs[0]))
        means: np.ndarray = _over_rounds(pairs, indices.astype(int), draw).mean(axis=-1)
        return means

    found = stats.bootstrap(
        (np.arange(len(pairs[0][0]) if alone else len(pairs)),),
        resampled,
        n_resamples=RESAMPLES,
        batch=BATCH,
        vectorized=True,
        axis=-1,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed + 1),
    )
    low, high = found.confidence_interval
    return math.exp(low), math.exp(high)


def _over_rounds(pairs: Sequence[Pair], indices: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """The log ratio of the round at each of ``indices``, every time over turns drawn anew inside it."""
    logs = np.empty(indices.shape)
    for number, (a, b) in enumerate(pairs):
        here = indices == number
        turns = draw.integers(0, len(a), (int(here.sum()), len(a)))
        logs[here] = _log_ratio(a[turns], b[turns])
    return logs


def _arrays(one: Round) -> Pair:
    a, b = np.asarray(one.a_ms, dtype=np.float64), np.asarray(one.b_ms, dtype=np.float64)
    require(a, "times of the first side")
    require(b, "times of the second side")
    return a, b


def _log_ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """log(p50(a) / p50(b)) over the last two axes, turns x requests."""
    ratio: np.ndarray = np.log(np.median(a, axis=(-2, -1)) / np.median(b, axis=(-2, -1)))
    return ratio
