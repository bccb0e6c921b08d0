"""What a pass may see: the user's calibration rows, the original model, and a score it cannot look behind.

Takes token arrays and class numbers, gives padded batches and the loss that belongs to them. Rows of selection and
final test are not in here: ``validate`` answers with one number, for early stopping.

Legend: B rows, L tokens, C outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Array = np.ndarray[Any, Any]
Row = Mapping[str, Array]
Batch = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a long pass is: ``done`` of ``total`` steps, the best score so far, and what runs. A ``note`` is worth
    keeping beside the result."""

    what: str
    done: int
    total: int
    score: float | None = None
    note: bool = False


def unheard(progress: Progress) -> None:
    """For passes that are used alone: nobody listens."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Rows and helpers for passes.

    ``rows`` are token arrays [1, L] each; ``labels`` class numbers [N] in their order, or ``None``; ``extra`` further
    rows without labels, for distillation alone. ``original`` is the unchanged task wrapper (the teacher),
    ``tokenizer_json`` its tokenizer.
    ``validate`` scores a wrapper on rows that a pass never sees, higher is better. A long pass keeps its state in
    ``state`` (a folder) so that a killed run goes on from there. With ``rehearse`` a training pass tells it how many
    seconds it would take, and trains nothing. A training ends with the best it has when ``time.monotonic()`` passes
    ``deadline``.
    """

    rows: Sequence[Row]
    labels: Array | None = None
    extra: Sequence[Row] = ()
    original: Any = None
    tokenizer_json: str | None = None
    validate: Callable[[nn.Module], float] | None = None
    seed: int = 0
    state: Path | None = None
    listen: Callable[[Progress], None] = field(default=unheard)
    rehearse: Callable[[float], None] | None = None
    deadline: float = math.inf

    def __len__(self) -> int:
        return len(self.rows)

    def head(self, count: int) -> list[Batch]:
        """The first ``count`` rows, each a batch of its own, without padding."""
        return [as_tensors(row) for row in self.rows[:count]]

    def batches(self, *, batch: int, limit: int | None = None) -> Iterator[tuple[Batch, Tensor | None]]:
        """The rows once, in order, ``batch`` at a time (padded), with their labels [B] where there are any."""
        count = len(self.rows) if limit is None else min(limit, len(self.rows))
        for start in range(0, count, batch):
            index = range(start, min(start + batch, count))
            yield padded([self.rows[i] for i in index]), self.labels_of(index)

    def labels_of(self, index: Sequence[int]) -> Tensor | None:
        return None if self.labels is None else torch.from_numpy(np.asarray(self.labels)[list(index)])


def padded(rows: Sequence[Row]) -> Batch:
    """int64 [B, L] tensors, padded with zeros on the right; the mask hides them."""
    longest = max(next(iter(row.values())).shape[1] for row in rows)
    batch = {}
    for name in rows[0]:
        tensor = torch.zeros(len(rows), longest, dtype=torch.int64)
        for number, row in enumerate(rows):
            tensor[number, : row[name].shape[1]] = torch.from_numpy(np.ascontiguousarray(row[name][0]))
        batch[name] = tensor
    return batch


def as_tensors(row: Row) -> Batch:
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in row.items()}


def task_loss(outputs: Tensor, labels: Tensor | None, *, generator: torch.Generator) -> Tensor:
    """The loss whose gradient says what matters to the task, summed over the batch; outputs are [B, C].

    Class labels: cross entropy. Without labels the outputs are logits or embeddings whose own size cannot say what
    is right, so each row is projected on a random direction: the mean of the squared gradients is then the
    Gauss-Newton diagonal of the outputs themselves (what a change does to them, whatever they are used for).
    """
    if labels is not None:
        return nn.functional.cross_entropy(outputs, labels, reduction="sum")
    direction = torch.randn(outputs.shape, generator=generator, dtype=outputs.dtype)
    return (outputs * direction).sum()
