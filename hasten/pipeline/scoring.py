"""Quality of two sets of outputs on the same rows: the drop with its interval, and the flips.

Takes outputs [N, ...] of the original and of a candidate, gives records. Uses the task's
own metric: pairwise over rows where it is a mean, by resampling rows where it is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hasten.measure.quality import flips, mcnemar_p, paired_drop, scored_drop
from hasten.pipeline.prepare import Part, Prepared
from hasten.records import Flip, InputError, Interval
from hasten.tasks.rows import Rows
from hasten.tasks.task import Generative

_MOST_FLIPS = 200
Array = np.ndarray[Any, Any]


def drop_interval(
    prepared: Prepared, part: Part, reference: Array, outputs: Array, *, labels: Sequence[str]
) -> Interval:
    """Points lost from ``reference`` to ``outputs`` on ``part``, with a 95 % paired bootstrap interval."""
    return drop_of(prepared.task, prepared.rows_of(part), reference, outputs, labels=labels, seed=prepared.splits.seed)


def drop_of(task: Any, rows: Rows, reference: Array, outputs: Array, *, labels: Sequence[str], seed: int) -> Interval:
    """The same for any rows and their outputs."""
    before = task.per_row(reference, rows, labels, reference=reference)
    after = task.per_row(outputs, rows, labels, reference=reference)
    if before is not None:
        return paired_drop(before, after, seed=seed)

    if isinstance(task, Generative):  # reading every answer anew for every sample would take hours
        sides = [task.scorer(outputs, rows, reference=reference) for outputs in (reference, outputs)]
        return scored_drop(lambda index: (sides[0](index), sides[1](index)), len(rows), seed=seed)

    def score(index: Array) -> tuple[float, float]:
        drawn, base = rows.take([int(i) for i in index]), reference[index]
        return tuple(task.score(o[index], drawn, labels, reference=base).value for o in (reference, outputs))

    return scored_drop(score, len(rows), seed=seed)


def flipped_rows(
    prepared: Prepared, part: Part, reference: Array, outputs: Array, *, labels: Sequence[str]
) -> tuple[tuple[Flip, ...], float | None]:
    """Rows whose prediction changed, and McNemar's exact p; empty and ``None`` where predictions are no words."""
    rows = prepared.rows_of(part)
    old, new = (prepared.task.predictions(o, rows, labels) for o in (reference, outputs))
    if old is None or new is None:
        return (), None
    (before, truth), after = old, new[0]
    if isinstance(prepared.task, Generative):  # an answer can be right in other words than its reference
        return flips(rows.texts, truth or None, before, after, part.index, _MOST_FLIPS), None
    p_value = mcnemar_p(
        [b == t for b, t in zip(before, truth, strict=True)],
        [a == t for a, t in zip(after, truth, strict=True)],
    )
    return flips(rows.texts, truth, before, after, part.index, _MOST_FLIPS), p_value


def check_finite(outputs: Array) -> None:
    """Raise InputError when the original's outputs [N, ...] hold NaN or infinity."""
    bad = int((~np.isfinite(outputs.reshape(len(outputs), -1))).any(axis=1).sum())
    if bad:
        raise InputError(
            f"the original model gives NaN or infinity for {bad} of {len(outputs)} rows",
            expected="finite outputs",
            remedy="check its weights: nothing can be measured against it",
        )
