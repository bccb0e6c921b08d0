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

from hasten.records import InputError
from hasten.tasks.examples import ANSWER, stacked
from hasten.tasks.wrappers import IGNORED

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

    ``rows`` are arrays [1, ...] each; ``targets`` what the wrapper's loss compares with, one array a row in their
    order, or ``None``; ``extra`` further rows without targets, for distillation alone. ``original`` is the unchanged
    task wrapper (the teacher), ``tokenizer_json`` its tokenizer.
    ``validate`` scores a wrapper on rows that a pass never sees, higher is better. A long pass keeps its state in
    ``state`` (a folder) so that a killed run goes on from there. With ``rehearse`` a training pass tells it how many
    seconds it would take, and trains nothing. A training ends with the best it has when ``time.monotonic()`` passes
    ``deadline``; :func:`hasten.passes.pace.ended_by` ends any other pass.
    """

    rows: Sequence[Row]
    targets: Sequence[Array] | None = None
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

    def first(self, count: int | None = None) -> Sequence[Row]:
        """The first ``count`` rows, or all. Raises InputError as :func:`check_rows`."""
        found = self.rows[:count]
        check_rows(found)
        return found

    def head(self, count: int) -> list[Batch]:
        """The first ``count`` rows, each a batch of its own, without padding."""
        return [as_tensors(row) for row in self.first(count)]

    def batches(self, *, batch: int, limit: int | None = None) -> Iterator[tuple[Batch, Tensor | None]]:
        """The rows once, in order, ``batch`` at a time (padded), with their targets where there are any."""
        count = len(self.first(limit))
        for start in range(0, count, batch):
            index = range(start, min(start + batch, count))
            yield padded([self.rows[i] for i in index]), self.targets_of(index)

    def targets_of(self, index: Sequence[int]) -> Tensor | None:
        """[B] or [B, ...], padded on the right with what no loss looks at."""
        if self.targets is None:
            return None
        return torch.from_numpy(stacked([np.asarray(self.targets[i]) for i in index], fill=IGNORED))


def check_rows(rows: Sequence[Row]) -> None:
    """Raise InputError when there is nothing to look at: no row, or not a single token in any of them."""
    if any(int(np.sum(row["attention_mask"])) if "attention_mask" in row else True for row in rows):
        return
    raise InputError(
        f"none of the {len(rows)} calibration rows has a token" if rows else "the calibration has no rows",
        expected="rows of the data that the model will see, with at least one token",
        remedy="give more data, or look at what the tokenizer makes of it",
    )


def padded(rows: Sequence[Row]) -> Batch:
    """Tensors [B, ...], tokens padded with zeros on the right; the mask hides them."""
    return {name: torch.from_numpy(stacked([row[name][0] for row in rows])) for name in rows[0]}


def length_of(row: Row) -> int:
    """Tokens of a row; images are all of one length."""
    return int(row["input_ids"].shape[1]) if "input_ids" in row else 1


def real(batch: Mapping[str, Tensor], states: Tensor, *, written: bool = False) -> Tensor:
    """bool [B, L]: which of ``states`` [B, L, ...] are of tokens, and not of padding. Images have none of that.

    ``written``: they are of the tokens that a decoder beside an encoder writes, and not of those that are read.
    """
    mask = batch.get(ANSWER[1] if written else "attention_mask")
    return torch.ones(states.shape[:2], dtype=torch.bool) if mask is None else mask.bool()


def as_tensors(row: Row) -> Batch:
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in row.items()}


def task_loss(
    model: Any, outputs: Tensor, targets: Tensor | None, *, batch: Mapping[str, Tensor], generator: torch.Generator
) -> Tensor:
    """The loss whose gradient says what matters to the task, summed over the batch: the wrapper's own with targets.

    Without targets the outputs are logits or embeddings whose own size cannot say what is right, so each row is
    projected on a random direction: the mean of the squared gradients is then the Gauss-Newton diagonal of the
    outputs themselves (what a change does to them, whatever they are used for).
    """
    if targets is not None:
        loss: Tensor = model.loss(outputs, targets)
        return loss
    rows = model.rows(outputs, batch)
    direction = torch.randn(rows.shape, generator=generator, dtype=rows.dtype)
    projected: Tensor = (rows * direction).sum()
    return projected
