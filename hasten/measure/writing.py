"""One answer of a session that writes text, token by token, with the times of its first token and of the whole.

Takes an open session, arrays and a generation (plain data that the session understands); gives ids and milliseconds.
Knows no runtime.

Legend: B rows, T tokens of the longest answer.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

NOTHING = -1  # after a row's end
FORCED = "forced_ids"  # beside a batch's arrays: what is to be written after them


def written(session: Any, arrays: Mapping[str, Any], generation: Any) -> tuple[np.ndarray[Any, Any], float, float]:
    """(ids int64 [B, T] with each row's end and -1 after it, ms until the first token, ms until the last)."""
    started = time.perf_counter_ns()
    columns, first_ms, whole_ms = [], 0.0, 0.0
    for ids in session.generate(arrays, generation):
        whole_ms = (time.perf_counter_ns() - started) / 1e6
        first_ms = first_ms or whole_ms
        columns.append(ids)
    made = np.stack(columns, axis=1).astype(np.int64)
    return made if generation.ignore_ends else ended(made, generation.ends), first_ms, whole_ms


def answered(session: Any, arrays: Mapping[str, Any], generation: Any) -> Any:
    """What the session gives: the whole answer where there is a ``generation``, else its outputs."""
    return session.run(arrays) if generation is None else written(session, arrays, generation)[0]


def forced(session: Any, *, batches: Sequence[Mapping[str, Any]]) -> list[np.ndarray[Any, Any]]:
    """The logits around the forced ids of each batch, step by step through the session's cache [B, N + 1, V]."""
    return [session.forced(batch, batch[FORCED]) for batch in batches]


def ranked_first(
    session: Any, *, batches: Sequence[Mapping[str, Any]], generation: Any
) -> list[np.ndarray[Any, Any]]:  # fmt: skip
    """What the session would write in the place of each of a batch's forced ids, when those before it are: int64
    [B, T], -1 where they are."""
    made = []
    for batch in batches:
        ids = batch[FORCED][:, : max(1, (batch[FORCED] != NOTHING).sum(axis=1).max())]
        found = session.ranked_first(batch, np.maximum(ids, 0), generation)
        made.append(np.where(ids == NOTHING, NOTHING, found))
    return made


def ended(ids: np.ndarray[Any, Any], ends: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """[B, T] with -1 behind the first end of each row."""
    over = np.isin(ids, ends)
    behind = np.cumsum(over, axis=1) - over > 0
    return np.where(behind, NOTHING, ids)


def per_token_ms(whole_ms: float, first_ms: float, tokens: int) -> float | None:
    """Milliseconds of each token after the first; ``None`` for a single one."""
    return (whole_ms - first_ms) / (tokens - 1) if tokens > 1 else None
