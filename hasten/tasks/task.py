"""What a task answers: how to wrap the model, check rows, score outputs and name predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from hasten.records import Quality
from hasten.tasks.rows import Rows

Array = np.ndarray[Any, Any]
FEW_ROWS = 50


class Task(Protocol):
    """One task. Outputs are [N, C]: logits or embeddings."""

    name: str
    pairs_apart: bool  # are the two texts of a pair run one by one?

    def wrap(self, checkpoint: Any) -> Any:
        """A module whose forward takes token arrays and gives one tensor [B, C]."""
        ...

    def wrap_model(self, model: Any, *, pooling: str | None, normalize: bool) -> Any:
        """The same around a bare model."""
        ...

    def check(self, rows: Rows, labels: Sequence[str]) -> tuple[Rows, tuple[str, ...]]:
        """Rows with labels in the model's spelling, and warnings. Raises InputError."""
        ...

    def score(self, outputs: Array, rows: Rows, labels: Sequence[str], *, reference: Array | None) -> Quality:
        """The metric over rows; ``reference`` is the original model's outputs."""
        ...

    def per_row(self, outputs: Array, rows: Rows, labels: Sequence[str], *, reference: Array | None) -> Array | None:
        """Each row's share of a metric that is a mean, in points [N]; ``None`` for other metrics."""
        ...

    def decode(self, outputs: Array, labels: Sequence[str]) -> list[Any]:
        """One plain record per row."""
        ...


def few_rows_warning(count: int) -> tuple[str, ...]:
    """Fewer than fifty rows decide nothing to a point."""
    if count >= FEW_ROWS:
        return ()
    return (f"only {count} rows: the intervals will be wide and the verdict weak; give a few hundred",)
