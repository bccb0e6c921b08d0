"""Turn the user's data into splits, token arrays and timing requests.

Takes a :class:`Request` and the checkpoint's facts, gives :class:`Prepared`. Knows no
runtime. Calibration, selection and final test never share a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hasten.bundle.answers import Answers
from hasten.measure.writing import FORCED
from hasten.pipeline.answering import answers_of, prompt_limit
from hasten.pipeline.jobs import Arrays, CheckpointFacts
from hasten.pipeline.request import Request
from hasten.records import Columns, InputError, SplitSizes, Workload
from hasten.tasks import get_task
from hasten.tasks.examples import Example, collate, unbatched
from hasten.tasks.images import ImageProcessor
from hasten.tasks.processor import open_processor
from hasten.tasks.rows import Rows, key_of, read_rows
from hasten.tasks.split import Splits, split_rows, splits_from_files
from hasten.tasks.task import Generative, reading

CALIBRATION_FEEDS = 128
GOLDEN_ROWS = 8
_PARITY_LENGTHS = (1, 3, 8, 17, 40, 97)
_PARITY_BATCHES = (1, 2, 5)
# Ids that every vocabulary has. Each row begins with another one, so that rows which change places are seen.
_FORCED_IDS = (3, 7, 5, 11)
_MOST_RECORDINGS = 500  # a megabyte each
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """One split: which rows, and the examples of each (several where a task needs them)."""

    index: tuple[int, ...]
    encoded: tuple[tuple[Example, ...], ...]

    def __len__(self) -> int:
        return len(self.index)

    @property
    def examples(self) -> list[Example]:
        """Every example by itself, in the rows' order."""
        return [example for row in self.encoded for example in row]

    def head(self, count: int) -> Part:
        """The first ``count`` rows."""
        return Part(self.index[:count], self.encoded[:count])


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything the trials need of the user's data.

    ``answers`` say what is written, where text is; timed prompts have ``prompt_tokens``, or their own lengths.
    """

    task: Any
    rows: Rows
    calibration: Part
    selection: Part
    test: Part
    splits: SplitSizes
    processor: Any
    input_names: tuple[str, ...]
    warnings: tuple[str, ...]
    extra: tuple[Example, ...] = ()
    answers: Answers | None = None
    prompt_tokens: int | None = None

    @property
    def extra_sha256(self) -> str | None:
        """Of the extra rows' tokens in their order; ``None`` without any."""
        if not self.extra:
            return None
        return hashlib.sha256(b"|".join(e.arrays["input_ids"].tobytes() for e in self.extra)).hexdigest()

    def batches(self, part: Part, *, batch: int) -> list[Arrays]:
        """The part's rows in order, ``batch`` at a time, padded."""
        return batches_of(part.encoded, self.input_names, batch=batch)

    def outputs(self, part: Part, made: Sequence[Array]) -> Array:
        """One array a row [N, ...], of what a session gave for :meth:`batches`."""
        found: Array = self.task.outputs(unbatched(made, part.examples), part.encoded)
        return found

    def requests(self, *, batch: int, count: int, seed: int) -> list[Arrays]:
        """``count`` timing requests that follow the user's real lengths: rows of selection, drawn at random."""
        rng = np.random.default_rng(seed)
        encoded = [self._timed(row) for row in self.selection.encoded]
        drawn = rng.permutation(np.resize(np.arange(len(encoded)), max(count * batch, len(encoded))))
        return batches_of([encoded[int(i)] for i in drawn[: count * batch]], self.input_names, batch=batch)

    def longest_request(self, *, batch: int) -> Arrays:
        """The longest inputs that there are, ``batch`` of them: what memory has to suffice for."""
        examples = [e for part in (self.selection, self.test) for row in part.encoded for e in self._timed(row)]
        longest = max(examples, key=lambda e: e.length)
        return collate([longest] * batch, self.input_names)

    def _timed(self, row: tuple[Example, ...]) -> tuple[Example, ...]:
        return row if self.prompt_tokens is None else tuple(e.cut(self.prompt_tokens) for e in row)

    def singles(self, part: Part) -> list[Arrays]:
        """Every example by itself."""
        return [collate([example], self.input_names) for example in part.examples]

    def calibration_feeds(self) -> list[Arrays]:
        return self.singles(self.calibration.head(CALIBRATION_FEEDS))

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


def read_data(request: Request) -> tuple[Rows, ...]:
    """The one source, or the three that are the splits. No model is needed: a wrong path should not wait for one.

    Raises InputError.
    """
    task, files = get_task(request.task), request.files
    sources = (files.calibration, files.selection, files.test) if files.data is None else (files.data,)
    return tuple(task.read(source, columns=request.columns) for source in sources if source is not None)


def prepare(request: Request, facts: CheckpointFacts, *, read: Sequence[Rows] | None = None) -> Prepared:
    """Check, split and tokenize the data (what :func:`read_data` gives); raises InputError for anything wrong with
    it."""
    task = get_task(request.task)
    rows, splits, warnings = _split(request, facts, task, read if read is not None else read_data(request))
    processor, answers = processor_of(facts, task, request.workload, rows=rows)
    task, max_length = reading(task, processor, request.workload), processor.max_length
    task = task.forcing() if isinstance(task, Generative) and rows.labels is None else task
    warnings = (*warnings, *unadapted(facts), *(facts.writing.notes if answers is not None else ()))
    indices, cut_note = _capped(splits, request.max_rows, sounds=rows.sounds is not None)
    warnings = (*warnings, *cut_note)
    parts = [_encode(task, processor, rows, index) for index in indices]
    extra = _extra(request, task, rows, splits, processor)
    check_ids([*(e for part in parts for e in part.examples), *extra], words=facts.words)
    cut = sum(e.truncated for part in parts for e in part.examples)
    if cut:
        share = cut / max(1, sum(len(p) for p in parts))
        limit = "what the model hears at once" if rows.sounds is not None else f"{max_length} tokens"
        warnings = (*warnings, f"{cut} rows ({share:.1%}) are longer than {limit} and were truncated")
    sizes = SplitSizes(
        calibration=len(parts[0]), selection=len(parts[1]), test=len(parts[2]), seed=splits.facts.seed,
        how=splits.facts.how, truncated_rows=cut, duplicate_rows=splits.facts.duplicate_rows,
    )  # fmt: skip
    return Prepared(
        task=task, rows=rows, calibration=parts[0], selection=parts[1], test=parts[2], splits=sizes,
        processor=processor, input_names=facts.input_names, warnings=warnings, extra=extra, answers=answers,
        prompt_tokens=request.workload.prompt_tokens,
    )  # fmt: skip


def processor_of(
    facts: CheckpointFacts, task: Any, workload: Workload, *, rows: Rows | None
) -> tuple[Any, Answers | None]:
    """The processor with its limit, which answers make shorter in a decoder; and those, where text is written."""
    limit = min(facts.max_length, workload.max_length)
    if limit < 1:
        raise InputError(
            f"the checkpoint has positions for {facts.max_length} tokens", expected="1 or more",
            remedy="correct max_position_embeddings in its config.json",
        )  # fmt: skip
    processor = open_processor(facts.processor_files, max_length=limit)
    if not isinstance(task, Generative):
        return processor, None
    assert not isinstance(processor, ImageProcessor)
    answers = answers_of(workload, facts.writing, rows, count=processor.count)
    shorter = prompt_limit(workload, facts.writing, answers, limit=limit)
    return open_processor(facts.processor_files, max_length=shorter), answers


def check_ids(examples: Sequence[Example], *, words: int | None) -> None:
    """Raise InputError for tokens that the model has no row for: the tokenizer is another model's."""
    ids = [e.arrays["input_ids"] for e in examples if "input_ids" in e.arrays]
    most = max((int(own.max()) for own in ids if len(own)), default=-1)
    if words is not None and most >= words:
        raise InputError(
            f"the tokenizer makes a token numbered {most} of your rows, and the model has rows for {words} tokens",
            expected="the tokenizer that the model was trained with",
            remedy="save the model's own tokenizer into its folder with save_pretrained",
        )


def unadapted(facts: CheckpointFacts) -> tuple[str, ...]:
    """What a family without an adapter is not offered: readers of the verdict should know."""
    if facts.layers:
        return ()
    tried = "runtimes and their own numbers were tried, and nothing that prunes, distils or treats layers apart"
    return (f"hasten has no adapter for the family {facts.family}: {tried}",)


def batches_of(encoded: Sequence[Sequence[Example]], input_names: Sequence[str], *, batch: int) -> list[Arrays]:
    """All examples of ``batch`` rows at a time, in order, padded."""
    return list(each_batch(encoded, input_names, batch=batch))


def each_batch(encoded: Sequence[Sequence[Example]], input_names: Sequence[str], *, batch: int) -> Iterator[Arrays]:
    """The same, one after the other."""
    for start in range(0, len(encoded), batch):
        yield collate([example for row in encoded[start : start + batch] for example in row], input_names)


def parity_batches(prepared: Prepared, *, longest: int, seed: int) -> list[Arrays]:
    """Batches of many lengths and sizes, with padding, from real rows cut or repeated to the length.

    An export that is right only at the length it was traced with fails on these. Where text is written each has ids
    to go on with beside its prompts: the steps after the prompt are another graph, or another path through it.
    """
    rng = np.random.default_rng(seed)
    known = prepared.calibration.examples
    pool = [e for e in known if e.length > 2] or known
    batches = []
    lengths_tried = [n for n in _PARITY_LENGTHS if n <= longest]
    for size in _PARITY_BATCHES:
        for most in lengths_tried:
            lengths = [most, *rng.integers(1, most + 1, size=size - 1)]
            drawn = [pool[int(rng.integers(len(pool)))].cut(int(n)) for n in lengths]
            batches.append(collate(drawn, prepared.input_names))
    if prepared.answers is None:
        return batches
    steps = min(len(_FORCED_IDS), prepared.answers.most)
    return [{**batch, FORCED: _forced_ids(len(next(iter(batch.values()))), steps)} for batch in batches]


def _forced_ids(rows: int, steps: int) -> Array:
    """int64 [rows, steps]"""
    return np.array([np.roll(_FORCED_IDS, -row)[:steps] for row in range(rows)], dtype=np.int64)


def _split(
    request: Request, facts: CheckpointFacts, task: Any, read: Sequence[Rows]
) -> tuple[Rows, Splits, tuple[str, ...]]:
    if len(read) > 1:
        rows, splits = splits_from_files(*read, seed=request.workload.seed)
        rows, warnings = task.check(rows, facts.labels)
        return rows, splits, (*splits.notes, *warnings)
    rows, warnings = task.check(read[0], facts.labels)
    return rows, split_rows(rows, seed=request.workload.seed, task=request.task), tuple(warnings)


def _extra(request: Request, task: Any, rows: Rows, splits: Splits, processor: Any) -> tuple[Example, ...]:
    """Further texts to learn from, each once; those that selection or final test hold are left out."""
    texts = list(request.extra_texts)
    if (texts or request.extra_file is not None) and (rows.images is not None or rows.sounds is not None):
        raise InputError("further texts for a model of other things", expected="none", remedy="leave --extra-data out")
    if request.extra_file is not None:
        named = Columns(text=request.columns.text)
        texts += read_rows(request.extra_file, columns=named, labels_wanted=False).texts
    held = (*splits.selection, *splits.test)
    judged = {key_of(rows.texts[i]) for i in held} | {key_of(p) for i in held if rows.pairs and (p := rows.pairs[i])}
    fresh = {key: text for text in texts if (key := key_of(text)) not in judged}
    put = isinstance(task, Generative) and task.encoder  # behind the prefix that it was trained with
    return tuple(task.encode(processor, {"text": t})[0] if put else processor.encode(t) for t in fresh.values())


def _capped(splits: Splits, max_rows: int | None, *, sounds: bool) -> tuple[list[tuple[int, ...]], tuple[str, ...]]:
    """The rows of each part, and what to warn of. ``--max-rows`` bounds selection and test each, and what recordings
    become is large; the splits are shuffled, so a head is a fair sample."""
    whole = [tuple(splits.calibration), tuple(splits.selection), tuple(splits.test)]
    most = _MOST_RECORDINGS if sounds else max(map(len, whole))
    cap = most if max_rows is None else max_rows
    parts = [whole[0][:most], whole[1][:cap], whole[2][:cap]]
    notes: tuple[str, ...] = ()
    if sounds and (len(whole[0]) > most or (max_rows is None and max(map(len, whole[1:])) > most)):
        notes = (f"at most {most} recordings are used of each part, for they are kept in memory (see --max-rows)",)
    if not all(parts):
        raise InputError(
            f"the data give splits of {', '.join(str(len(p)) for p in parts)} rows",
            expected="at least one row each for calibration, selection and final test",
            remedy="give more rows: a few hundred make the intervals useful",
        )
    return parts, notes


def _encode(task: Any, processor: Any, rows: Rows, index: Sequence[int]) -> Part:
    return Part(tuple(index), tuple(task.encode(processor, item) for item in rows.take(index).items()))
