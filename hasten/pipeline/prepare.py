"""Turn the user's data into splits, token arrays and timing requests.

Takes a :class:`Request` and the checkpoint's facts, gives :class:`Prepared`. Knows no
runtime. Calibration, selection and final test never share a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hasten.pipeline.jobs import Arrays, CheckpointFacts
from hasten.pipeline.request import Request
from hasten.records import Columns, InputError, SplitSizes
from hasten.tasks import get_task
from hasten.tasks.rows import Rows, read_rows
from hasten.tasks.split import Splits, key_of, split_rows, splits_from_files
from hasten.tasks.tokenize import Encoded, Tokenizer, encode_rows, pad_batch

CALIBRATION_FEEDS = 128
GOLDEN_ROWS = 8
_PARITY_LENGTHS = (1, 3, 8, 17, 40, 97)
_PARITY_BATCHES = (1, 2, 5)


@dataclass(frozen=True, slots=True)
class Part:
    """One split: which rows, and their encodings (two a row where a task embeds pairs apart)."""

    index: tuple[int, ...]
    encoded: tuple[Encoded, ...]

    def __len__(self) -> int:
        return len(self.index)

    def head(self, count: int) -> Part:
        """The first ``count`` rows."""
        each = len(self.encoded) // len(self.index)
        return Part(self.index[:count], self.encoded[: count * each])


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything the trials need of the user's data."""

    task: Any
    rows: Rows
    calibration: Part
    selection: Part
    test: Part
    splits: SplitSizes
    tokenizer: Tokenizer
    input_names: tuple[str, ...]
    warnings: tuple[str, ...]
    extra: tuple[Encoded, ...] = ()

    @property
    def extra_sha256(self) -> str | None:
        """Of the extra rows' tokens in their order; ``None`` without any."""
        if not self.extra:
            return None
        return hashlib.sha256(b"|".join(e.ids.tobytes() for e in self.extra)).hexdigest()

    def batches(self, part: Part, *, batch: int) -> list[Arrays]:
        """The part's rows in order, ``batch`` at a time, padded."""
        groups = (part.encoded[i : i + batch] for i in range(0, len(part.encoded), batch))
        return [pad_batch(list(group), self.input_names) for group in groups]

    def requests(self, *, batch: int, count: int, seed: int) -> list[Arrays]:
        """``count`` timing requests that follow the user's real lengths: rows of selection, drawn at random."""
        rng = np.random.default_rng(seed)
        encoded = self.selection.encoded
        drawn = rng.permutation(np.resize(np.arange(len(encoded)), max(count * batch, len(encoded))))
        groups = (drawn[i * batch : (i + 1) * batch] for i in range(count))
        return [pad_batch([encoded[int(i)] for i in group], self.input_names) for group in groups]

    def calibration_feeds(self) -> list[Arrays]:
        return self.batches(self.calibration.head(CALIBRATION_FEEDS), batch=1)

    def within(self, rows: int) -> Prepared:
        """With at most ``rows`` rows each for selection and final test, said in a warning when that cuts any."""
        if rows >= max(len(self.selection), len(self.test)):
            return self
        selection, test = self.selection.head(rows), self.test.head(rows)
        note = f"selection and final test use {rows} rows each: the time allows no more (give more --time to use all)"
        return replace(
            self,
            selection=selection,
            test=test,
            splits=replace(self.splits, selection=len(selection), test=len(test)),
            warnings=(*self.warnings, note),
        )

    def rows_of(self, part: Part) -> Rows:
        return self.rows.take(part.index)


def prepare(request: Request, facts: CheckpointFacts, *, rows: Rows | None = None) -> Prepared:
    """Read, check, split and tokenize the data; raises InputError for anything wrong with it."""
    task = get_task(request.task)
    rows, splits, warnings = _split(request, facts, task, rows)
    max_length = min(facts.max_length, request.workload.max_length)
    tokenizer = Tokenizer(facts.tokenizer_json, max_length=max_length)
    parts = [_encode(tokenizer, rows, index, apart=task.pairs_apart) for index in _capped(splits, request.max_rows)]
    extra = _extra(request, rows, splits, tokenizer)
    cut = sum(e.truncated for part in parts for e in part.encoded)
    if cut:
        share = cut / max(1, sum(len(p) for p in parts))
        warnings = (
            *warnings,
            f"{cut} rows ({share:.1%}) are longer than {max_length} tokens and were truncated",
        )
    sizes = SplitSizes(
        calibration=len(parts[0]), selection=len(parts[1]), test=len(parts[2]), seed=splits.facts.seed,
        how=splits.facts.how, truncated_rows=cut, duplicate_rows=splits.facts.duplicate_rows,
    )  # fmt: skip
    return Prepared(
        task=task, rows=rows, calibration=parts[0], selection=parts[1], test=parts[2], splits=sizes,
        tokenizer=tokenizer, input_names=model_inputs(facts.family), warnings=warnings, extra=extra,
    )  # fmt: skip


def model_inputs(family: str) -> tuple[str, ...]:
    """The inputs a family's forward takes: token types only where the checkpoint embeds them."""
    typed = family in {"bert", "electra"}
    return ("input_ids", "attention_mask", "token_type_ids") if typed else ("input_ids", "attention_mask")


def parity_batches(prepared: Prepared, *, longest: int, seed: int) -> list[Arrays]:
    """Batches of many lengths and sizes, with padding, from real rows cut or repeated to the length.

    An export that is right only at the length it was traced with fails on these.
    """
    rng = np.random.default_rng(seed)
    pool = [e for e in prepared.calibration.encoded if len(e.ids) > 2] or list(prepared.calibration.encoded)
    batches = []
    lengths_tried = [n for n in _PARITY_LENGTHS if n <= longest]
    for size in _PARITY_BATCHES:
        for most in lengths_tried:
            lengths = [most, *rng.integers(1, most + 1, size=size - 1)]
            batches.append(pad_batch([_of_length(pool, int(n), rng) for n in lengths], prepared.input_names))
    return batches


def _of_length(pool: Sequence[Encoded], length: int, rng: np.random.Generator) -> Encoded:
    """One encoding of exactly ``length`` tokens, its ids taken from real rows."""
    first = pool[int(rng.integers(len(pool)))]
    return Encoded(
        ids=np.resize(first.ids, length),
        type_ids=np.zeros(length, dtype=np.int64),
        attention=np.ones(length, dtype=np.int64),
        truncated=False,
    )


def _split(
    request: Request, facts: CheckpointFacts, task: Any, rows: Rows | None
) -> tuple[Rows, Splits, tuple[str, ...]]:
    files = request.files
    if files.data is None and rows is None:
        sources = (files.calibration, files.selection, files.test)
        three = [read_rows(source, columns=request.columns) for source in sources if source is not None]
        rows, splits = splits_from_files(*three, seed=request.workload.seed)
        rows, warnings = task.check(rows, facts.labels)
        return rows, splits, tuple(warnings)
    if rows is None:
        assert files.data
        rows = read_rows(files.data, columns=request.columns)
    rows, warnings = task.check(rows, facts.labels)
    return rows, split_rows(rows, seed=request.workload.seed, task=request.task), tuple(warnings)


def _extra(request: Request, rows: Rows, splits: Splits, tokenizer: Tokenizer) -> tuple[Encoded, ...]:
    """Further texts to learn from, each once; those that selection or final test hold are left out."""
    texts = list(request.extra_texts)
    if request.extra_file is not None:
        named = Columns(text=request.columns.text)
        texts += read_rows(request.extra_file, columns=named, labels_wanted=False).texts
    held = (*splits.selection, *splits.test)
    judged = {key_of(rows.texts[i]) for i in held} | {key_of(p) for i in held if rows.pairs and (p := rows.pairs[i])}
    fresh = {key: text for text in texts if (key := key_of(text)) not in judged}
    return tuple(tokenizer.encode(text) for text in fresh.values())


def _capped(splits: Splits, max_rows: int | None) -> list[tuple[int, ...]]:
    """``--max-rows`` bounds selection and test each; the splits are shuffled, so a head is a fair sample."""
    cap = max_rows if max_rows is not None else max(len(splits.selection), len(splits.test))
    parts = [tuple(splits.calibration), tuple(splits.selection[:cap]), tuple(splits.test[:cap])]
    if not all(parts):
        raise InputError(
            f"the data give splits of {', '.join(str(len(p)) for p in parts)} rows",
            expected="at least one row each for calibration, selection and final test",
            remedy="give more rows: a few hundred make the intervals useful",
        )
    return parts


def _encode(tokenizer: Tokenizer, rows: Rows, index: Sequence[int], *, apart: bool) -> Part:
    """Texts with their pairs in one sequence, or each by itself where the task embeds them apart."""
    chosen = rows.take(index)
    return Part(tuple(index), tuple(encode_rows(tokenizer, chosen.texts, chosen.pairs, apart=apart)))
