"""What a task answers: how to read and check rows, what the model is given, how its outputs are scored and named."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from hasten.records import Columns, Quality, Workload

if TYPE_CHECKING:
    from hasten.tasks.examples import Example
    from hasten.tasks.rows import Rows

Array = np.ndarray[Any, Any]
# One row as the user gives it: "text", and where the task has them "text_pair" and "image" (an encoded file's bytes).
Item = Mapping[str, Any]
FEW_ROWS = 50


class Processor(Protocol):
    """The checkpoint's own way from an item to arrays: a tokenizer, or how images are scaled."""

    max_length: int


class Task(Protocol):
    """One task. A row may need several examples (a long context); ``outputs`` puts them together, one array a row.

    ``head`` is the end of the transformers class that a checkpoint must be saved as ("" for a bare encoder, several
    where families differ), ``auto`` the transformers class that loads it. ``labelled``: have the outputs names?
    """

    @property
    def name(self) -> str: ...
    @property
    def head(self) -> str | tuple[str, ...]: ...
    @property
    def auto(self) -> str: ...
    @property
    def labelled(self) -> bool: ...
    @property
    def per_token(self) -> bool:
        """Are the model's outputs of every token, [B, L, C], or of the whole, [B, C]?"""
        ...

    @property
    def foretells(self) -> bool:
        """Are a token's outputs of the one that follows it? Then those of a text's last one say nothing."""
        ...

    @property
    def aliases(self) -> Mapping[str, str]:
        """Other names that ``predict`` takes for an item's parts, such as "question" for "text"."""
        ...

    def read(self, source: str | Path, *, columns: Columns, labels_wanted: bool = True) -> Rows:
        """The user's rows in the forms that are usual for the task. Raises InputError."""
        ...

    def check(self, rows: Rows, labels: Sequence[str]) -> tuple[Rows, tuple[str, ...]]:
        """Rows with labels in the model's spelling, and warnings. Raises InputError."""
        ...

    def wrap(self, checkpoint: Any) -> Any:
        """A :class:`hasten.tasks.wrappers.Wrapper`: arrays in, one tensor out."""
        ...

    def wrap_model(self, model: Any, *, pooling: str | None, normalize: bool) -> Any:
        """The same around a bare model."""
        ...

    def encode(self, processor: Any, item: Item) -> tuple[Example, ...]:
        """What the model is given for one row: one example or more."""
        ...

    def targets(self, rows: Rows, labels: Sequence[str], encoded: Sequence[Sequence[Example]]) -> list[Array] | None:
        """What the wrapper's loss compares with, for every example of every row in order; ``None``: nothing to."""
        ...

    def outputs(self, raw: Sequence[Array], encoded: Sequence[Sequence[Example]]) -> Array:
        """One array a row, [N, ...], of one array an example; rows of unequal width are padded with zeros."""
        ...

    def comparable(self, outputs: Array) -> Array:
        """The part of a session's outputs that may differ a little between right exports: all of it, but for ids."""
        ...

    def score(self, outputs: Array, rows: Rows, labels: Sequence[str], *, reference: Array | None) -> Quality:
        """The metric over rows; ``reference`` is the original model's outputs."""
        ...

    def per_row(self, outputs: Array, rows: Rows, labels: Sequence[str], *, reference: Array | None) -> Array | None:
        """Each row's share of a metric that is a mean, in points [N]; ``None`` for other metrics."""
        ...

    def predictions(self, outputs: Array, rows: Rows, labels: Sequence[str]) -> tuple[list[str], list[str]] | None:
        """What the model says of each row and what would be right, in words; ``None`` where neither is a word."""
        ...

    def decode(self, outputs: Array, rows: Rows, labels: Sequence[str]) -> list[Any]:
        """One plain record per row."""
        ...


@runtime_checkable
class Generative(Protocol):
    """What a task offers beside :class:`Task` when its sessions write text: they are asked through ``generate``, and
    its outputs are token ids int64 [N, T], with the end and -1 after it."""

    @property
    def encoder(self) -> bool:
        """Is the input read by an encoder of its own?"""
        ...

    def reading(self, processor: Any, workload: Workload) -> Task:
        """The task with what it needs to put texts as the workload says, and to read what was written."""
        ...

    @property
    def forced(self) -> bool:
        """Are its outputs what a model would take in the place of each of the original's tokens?"""
        ...

    def forcing(self) -> Task:
        """The same for such outputs, which are compared where there are no references."""
        ...

    def in_full(self) -> Task:
        """The same in the wrapper that passes take of an encoder-decoder, which sees whole answers."""
        ...

    def scorer(self, outputs: Array, rows: Rows, *, reference: Array | None) -> Callable[[Array], float]:
        """The metric over any choice of rows; what is the same in every choice is computed once."""
        ...


def reading(task: Task, processor: Any, workload: Workload) -> Task:
    """A task that writes text, ready to read it; any other one as it is."""
    return task.reading(processor, workload) if isinstance(task, Generative) else task


def few_rows_warning(count: int) -> tuple[str, ...]:
    """Fewer than fifty rows decide nothing to a point."""
    if count >= FEW_ROWS:
        return ()
    return (f"only {count} rows: the intervals will be wide and the verdict weak; give a few hundred",)
