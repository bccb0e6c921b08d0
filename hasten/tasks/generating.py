"""What all tasks share whose answers are texts that a model writes: reading ids, and scoring them.

With references the task's own metric counts. Without any it is next-token agreement: the original's answers are forced
upon a model, and counted are the tokens of them that it ranks first, too (:meth:`Generating.forcing`). Of answers that
were written freely agreement is stricter, the share of the original's tokens that come again before the first other
one; it stands beside every metric. Means over rows, in points, 100 at best.

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
from hasten.tasks.examples import ANSWER, Example, stacked
from hasten.tasks.rows import Rows
from hasten.tasks.task import Array, Item, Task, few_rows_warning
from hasten.tasks.text_metrics import TextMetric

NOTHING = -1  # after an answer's end
AGREEMENT, NEXT_TOKEN = "agreement", "next_token_agreement"
_MOST_COMPARED = 4096  # of a vocabulary's logits; enough to tell a wrong export


class Reader(Protocol):
    """How a task's rows are read; as :meth:`hasten.tasks.task.Task.read`."""

    def __call__(self, source: str | Path, *, columns: Columns, labels_wanted: bool = True) -> Rows: ...


@dataclass(frozen=True, slots=True)
class Generating:
    """One such task. Outputs are token ids int64 [N, T], with the end and -1 after it; labels are tuples of references.

    ``rows`` reads the user's data, ``give`` makes the one example of an item, ``metric`` scores where there are
    references. ``processor``, ``chat`` and ``prefix`` are there after :meth:`reading`. ``whole``: the wrapper of an
    encoder-decoder is the one that passes take, which sees whole answers. ``forced``: outputs are what a model would
    take in the place of each of the original's tokens.
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
    foretells: bool = False
    aliases: Mapping[str, str] = field(default_factory=dict)
    processor: Any = None
    chat: bool = False
    prefix: str = ""
    whole: bool = False
    forced: bool = False

    def reading(self, processor: Any, workload: Workload) -> Task:
        return replace(self, processor=processor, chat=workload.chat, prefix=workload.prefix)

    def in_full(self) -> Task:
        return replace(self, whole=True)

    def forcing(self) -> Task:
        return replace(self, forced=True)

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
        from hasten.tasks.generation_wrappers import GenerationWrapper, PairWrapper, Seq2SeqGenerationWrapper

        beside = PairWrapper if self.whole else Seq2SeqGenerationWrapper
        wrapper = beside(model, start=start_of(model)) if self.encoder else GenerationWrapper(model)
        wrapper.task = self.name
        return wrapper

    def encode(self, processor: Any, item: Item) -> tuple[Example, ...]:
        return (self.give(self, processor, item),)

    def targets(self, rows: Rows, labels: Sequence[str], encoded: Sequence[Sequence[Example]]) -> list[Array] | None:
        """[T] of each answer where the wrapper sees it whole: its tokens, -100 for what it begins with. The next token
        alone would teach little."""
        del rows, labels
        if not self.whole:
            return None
        return [np.where(e.arrays["fresh"] > 0, e.arrays[ANSWER[0]], -100) for row in encoded for e in row]

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
        if self.forced:
            tokens = float((against != NOTHING).sum(axis=1).mean())
            return Quality(NEXT_TOKEN, 100.0 * float(alike.mean()), len(outputs), {"tokens": tokens})
        agreed = {AGREEMENT: 100.0 * float(prefix.mean()), "token_agreement": 100.0 * float(alike.mean())}
        agreed["tokens"] = float((outputs != NOTHING).sum(axis=1).mean())
        if rows.labels is None:
            return Quality(AGREEMENT, agreed.pop(AGREEMENT), len(outputs), agreed)
        found = dict(self.metric.score(self._measured(outputs, rows)))
        return Quality(self.metric.name, found.pop(self.metric.name), len(outputs), {**found, **agreed})

    def per_row(self, outputs: Array, rows: Rows, labels: Sequence[str], *, reference: Array | None) -> Array | None:
        del labels
        if rows.labels is None:
            prefix, alike = agreement(outputs, outputs if reference is None else reference)
            return 100.0 * (alike if self.forced else prefix)
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
