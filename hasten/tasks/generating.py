"""What all tasks share whose answers are texts that a model writes: reading ids, and scoring them.

With references the task's own metric counts, else agreement: the share of the original's tokens that are written
again before the first other one, a mean over rows. Agreement stands beside every metric. In points, 100 at best.

Legend: N rows, T tokens of the longest answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hasten.records import Columns, InputError, Quality, Workload
from hasten.tasks.examples import Example, stacked
from hasten.tasks.rows import Rows
from hasten.tasks.task import Array, Item, Task, few_rows_warning
from hasten.tasks.text_metrics import TextMetric

NOTHING = -1  # after an answer's end
_MOST_COMPARED = 4096  # of a vocabulary's logits; enough to tell a wrong export


class Reader(Protocol):
    """How a task's rows are read; as :meth:`hasten.tasks.task.Task.read`."""

    def __call__(self, source: str | Path, *, columns: Columns, labels_wanted: bool = True) -> Rows: ...


@dataclass(frozen=True, slots=True)
class Generating:
    """One such task. Outputs are token ids int64 [N, T], with the end and -1 after it; labels are tuples of references.

    ``rows`` reads the user's data, ``give`` makes the one example of an item, ``metric`` scores where there are
    references. ``processor``, ``chat`` and ``prefix`` are there after :meth:`reading`.
    """

    name: str
    head: tuple[str, ...]
    auto: str
    encoder: bool
    rows: Reader
    give: Callable[[Generating, Any, Item], Example]
    metric: TextMetric
    needs_references: bool = False
    labelled: bool = False
    per_token: bool = False
    aliases: Mapping[str, str] = field(default_factory=dict)
    processor: Any = None
    chat: bool = False
    prefix: str = ""

    def reading(self, processor: Any, workload: Workload) -> Task:
        return replace(self, processor=processor, chat=workload.chat, prefix=workload.prefix)

    def read(self, source: str | Path, *, columns: Columns, labels_wanted: bool = True) -> Rows:
        return self.rows(source, columns=columns, labels_wanted=labels_wanted)

    def check(self, rows: Rows, labels: Sequence[str]) -> tuple[Rows, tuple[str, ...]]:
        del labels
        if rows.labels is None and self.needs_references:
            raise InputError(
                f"{rows.source} has no references (columns: {', '.join(rows.column_names)})",
                expected=f"what {self.name} should give for each row", remedy="name their column with --label-column",
            )  # fmt: skip
        if rows.labels is not None:  # what is missing is better said now than after the first answers
            self.metric.measure(["w"], [["w"]])
        return rows, few_rows_warning(len(rows))

    def wrap(self, checkpoint: Any) -> Any:
        return self.wrap_model(checkpoint.model, pooling=None, normalize=False)

    def wrap_model(self, model: Any, *, pooling: str | None, normalize: bool) -> Any:
        del pooling, normalize
        from hasten.models.writing import start_of
        from hasten.tasks.generation_wrappers import GenerationWrapper, Seq2SeqGenerationWrapper

        wrapper = Seq2SeqGenerationWrapper(model, start=start_of(model)) if self.encoder else GenerationWrapper(model)
        wrapper.task = self.name
        return wrapper

    def encode(self, processor: Any, item: Item) -> tuple[Example, ...]:
        return (self.give(self, processor, item),)

    def targets(self, rows: Rows, labels: Sequence[str], encoded: Sequence[Sequence[Example]]) -> list[Array] | None:
        """The first token alone would teach little: what is learnt from is another task's matter."""
        del rows, labels, encoded
        return None

    def outputs(self, raw: Sequence[Array], encoded: Sequence[Sequence[Example]]) -> Array:
        del encoded
        return stacked([np.asarray(ids, dtype=np.int64) for ids in raw], fill=NOTHING)

    def comparable(self, outputs: Array) -> Array:
        """Of the next token's logits [B, V] at most 4,096, evenly spread over the vocabulary."""
        return outputs[..., :: max(1, -(-outputs.shape[-1] // _MOST_COMPARED))]

    def score(self, outputs: Array, rows: Rows, labels: Sequence[str], *, reference: Array | None) -> Quality:
        del labels
        against = outputs if reference is None else reference
        prefix, alike = agreement(outputs, against)
        agreed = {"agreement": 100.0 * float(prefix.mean()), "token_agreement": 100.0 * float(alike.mean())}
        agreed["tokens"] = float((outputs != NOTHING).sum(axis=1).mean())
        if rows.labels is None:
            return Quality("agreement", agreed.pop("agreement"), len(outputs), agreed)
        found = dict(self.metric.score(self._measured(outputs, rows)))
        return Quality(self.metric.name, found.pop(self.metric.name), len(outputs), {**found, **agreed})

    def per_row(self, outputs: Array, rows: Rows, labels: Sequence[str], *, reference: Array | None) -> Array | None:
        del labels
        if rows.labels is None:
            return 100.0 * agreement(outputs, outputs if reference is None else reference)[0]
        if not self.metric.mean:
            return None
        first: Array = self._measured(outputs, rows)[:, 0]
        return first

    def scorer(self, outputs: Array, rows: Rows, *, reference: Array | None) -> Callable[[Array], float]:
        del reference
        measured, metric = self._measured(outputs, rows), self.metric
        return lambda index: metric.score(measured[index])[metric.name]

    def predictions(self, outputs: Array, rows: Rows, labels: Sequence[str]) -> tuple[list[str], list[str]] | None:
        del labels
        known = rows.labels or ()
        return self.texts(outputs), [str(references[0]) for references in known]

    def decode(self, outputs: Array, rows: Rows, labels: Sequence[str]) -> list[Any]:
        """``{"text", "tokens"}`` of each row; ``tokens`` counts what was written, with the end."""
        del rows, labels
        counts = (outputs != NOTHING).sum(axis=1).tolist()
        return [{"text": text, "tokens": int(n)} for text, n in zip(self.texts(outputs), counts, strict=True)]

    def texts(self, outputs: Array) -> list[str]:
        """What the ids say. Only after :meth:`reading`."""
        assert self.processor is not None, f"{self.name} was not given its tokenizer"
        return [self.processor.text([i for i in row.tolist() if i != NOTHING]).strip() for row in outputs]

    def _measured(self, outputs: Array, rows: Rows) -> Array:
        """[N, K]; rows that were scored before are not read again."""
        texts = self.texts(outputs)
        return np.stack([_of_one(self.metric, t, tuple(r)) for t, r in zip(texts, rows.labels or (), strict=True)])


@lru_cache(maxsize=50_000)
def _of_one(metric: TextMetric, text: str, references: tuple[str, ...]) -> Array:
    found: Array = metric.measure([text], [references])[0]
    return found


def agreement(outputs: Array, reference: Array) -> tuple[Array, Array]:
    """Of each row [N]: the share of the reference's tokens that come again before the first other one, and the share
    that stand at the same place; 0 to 1."""
    width = max(outputs.shape[1], reference.shape[1])
    ours, theirs = (_wide(ids, width) for ids in (outputs, reference))
    real = theirs != NOTHING
    same = (ours == theirs) & real
    count = np.maximum(1, real.sum(axis=1))
    before = np.cumprod(np.where(real, same, False), axis=1).sum(axis=1)
    return before / count, same.sum(axis=1) / count


def _wide(ids: Array, width: int) -> Array:
    return np.pad(ids, ((0, 0), (0, width - ids.shape[1])), constant_values=NOTHING)
