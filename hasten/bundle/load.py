"""Open a bundle and run it: the online end of the bridge.

Takes a bundle's path, gives a :class:`Model`. Needs the bundle's runtime library,
``tokenizers`` and numpy; imports no training code (no torch unless the bundle's own
runtime is torch).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from hasten.bundle.answers import Answers, scored
from hasten.bundle.golden import check_golden, check_shape, read_golden
from hasten.bundle.manifest import Manifest, check_instructions, read_manifest, verify_files
from hasten.measure.writing import FORCED, answered, forced
from hasten.records import InputError, config_from_dict
from hasten.tasks import get_task
from hasten.tasks.examples import Example, collate, unbatched
from hasten.tasks.processor import files_of, open_processor, sample
from hasten.tasks.rows import of_items
from hasten.tasks.task import Item, reading

Row = str | tuple[str, str] | Mapping[str, Any]
Prediction = dict[str, Any] | list[float]
_PARTS = {"text": str, "text_pair": str, "image": object, "audio": object}
_HALF = "\ufffd"
_SETTINGS: Mapping[str, Any] = {"temperature": (int, float), "top_k": int, "top_p": (int, float), "seed": int}


class Model:
    """An opened bundle. Thread-safe as far as its runtime is; use one per worker for torch bundles."""

    def __init__(self, manifest: Manifest, *, session: Any, processor: Any, folder: Path) -> None:
        self.manifest, self.folder = manifest, folder
        self._session, self._processor = session, processor
        self._task = reading(get_task(manifest.task), processor, manifest.workload)

    @property
    def precision(self) -> str:
        """The precision that really runs on this host."""
        return str(self._session.precision)

    @property
    def session(self) -> Any:
        """The runtime's own session: what it offers beside :meth:`run`."""
        return self._session

    @property
    def input_names(self) -> tuple[str, ...]:
        """The arrays that :meth:`run` takes."""
        return self.manifest.input_names

    def run(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        """Encoded input (token ids int64 [B, L], pixels float32 [B, 3, H, W]) to raw outputs (float32 [B, ...])."""
        missing = set(self.manifest.input_names) - set(arrays)
        if missing:
            raise InputError(
                f"no array named {', '.join(sorted(missing))} (got {', '.join(sorted(arrays))})",
                expected=f"arrays {', '.join(self.manifest.input_names)}, as encode gives them",
                remedy="pass every input, or use predict(rows)",
            )
        outputs: np.ndarray[Any, Any] = self._session.run({n: arrays[n] for n in self.manifest.input_names})
        return outputs

    def predict(self, rows: Iterable[Row], *, batch: int | None = None) -> list[Prediction]:
        """One record per row, in input order.

        ``rows`` are texts, (text, pair) tuples or mappings with ``text`` (and ``text_pair``), ``image`` (a file's
        bytes, a path, a Pillow image) or ``audio`` (a file's bytes, a path). Examples of like length share a batch of
        at most ``batch`` (default: the batch the bundle was measured at, since dynamically quantized models may round
        a little differently in other company). What a record holds is the task's: see its ``decode``.
        """
        if isinstance(rows, (str, bytes, Mapping)) or not isinstance(rows, Iterable):
            raise InputError(
                f"predict got one {type(rows).__name__}", expected="a list of rows", remedy="wrap it: [row]"
            )
        if batch is not None:
            _check_count("batch", batch)
        items = [self._item(row, number) for number, row in enumerate(rows)]
        encoded = [self._encode(item, number) for number, item in enumerate(items)]
        made = iter(self._run_all([example for own in encoded for example in own], batch=batch))
        found: list[Prediction] = []
        for item, own in zip(items, encoded, strict=True):
            outputs = self._task.outputs([next(made) for _ in own], [own])
            found += self._task.decode(outputs, of_items([item]), self.manifest.labels)
        return found

    def generate(self, row: Row, *, new_tokens: int | None = None, **settings: Any) -> Iterator[str]:
        """The answer to one row, piece by piece while it is written; greedy, or as ``settings`` say (temperature,
        top_k, top_p, seed).

        ``new_tokens`` defaults to what the bundle was measured with. Raises InputError for a task that writes no text,
        and for settings or prompts that the model cannot take.
        """
        answers = self._answers()
        _check_settings(settings)
        if new_tokens is not None:
            _check_count("new_tokens", new_tokens)
        most = answers.most if new_tokens is None else new_tokens
        generation = replace(answers.scored, new_tokens=most, **settings)
        arrays, ids, said = self.encode(row), list[int](), ""
        for (token,) in self._session.generate(arrays, generation):
            if int(token) in answers.ends:
                break
            ids.append(int(token))
            text = self._processor.text(ids)
            if not text.endswith(_HALF):  # a letter may need another token
                yield from _further(said, text)
                said = text
        yield from _further(said, self._processor.text(ids))

    def _answers(self) -> Answers:
        if self.manifest.answers is None:
            raise InputError(
                f"this bundle is for {self.manifest.task}, which writes no text", expected="a bundle that does",
                remedy="use predict(rows)",
            )  # fmt: skip
        return self.manifest.answers

    def truncated(self, rows: Iterable[Row]) -> int:
        """How many rows are longer than the model and would be cut."""
        encoded = (self._encode(self._item(row, number), number) for number, row in enumerate(rows))
        return sum(any(e.truncated for e in own) for own in encoded)

    def encode(self, row: Row) -> dict[str, np.ndarray[Any, Any]]:
        """One row as arrays [1, ...]; more than one where the task needs several (a pair to embed, a long context)."""
        return collate(self._encode(self._item(row, 0), 0), self.manifest.input_names)

    def close(self) -> None:
        self._session.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        m = self.manifest
        p50 = m.measured.figures.latency_ms
        speed = f", p50 {p50.p50:.2f} ms when built" if p50 else ""
        return f"<hasten bundle {m.task}, {m.recipe_label} ({self.precision}){speed}, from {m.source}>"

    def _encode(self, item: Item, number: int) -> tuple[Example, ...]:
        """The row's examples. Raises InputError when the task needs a part that the row has not."""
        try:
            return self._task.encode(self._processor, item)
        except KeyError as error:
            raise InputError(
                f"row {number} has {', '.join(item) or 'nothing'}, and no {error.args[0]!r}",
                expected=f"what {self.manifest.task} is about",
                remedy=f"give rows with {error.args[0]!r}",
            ) from error

    def _item(self, row: Row, number: int) -> Item:
        """A row in the one form that tasks know; a list among its parts becomes JSON."""
        if isinstance(row, str):
            return {"text": row}
        if isinstance(row, tuple) and len(row) == 2 and all(isinstance(text, str) for text in row):
            return {"text": row[0], "text_pair": row[1]}
        if isinstance(row, Mapping):
            named = {self._task.aliases.get(str(name), str(name)): value for name, value in row.items()}
            given = {name: named[name] for name in _PARTS if named.get(name) is not None}
            item = {name: json.dumps(value) if isinstance(value, list) else value for name, value in given.items()}
            if item.keys() - {"text_pair"} and all(isinstance(value, _PARTS[name]) for name, value in item.items()):
                return item
        raise InputError(
            f"row {number} is {type(row).__name__}: {str(row)[:60]!r}",
            expected='a text, a (text, pair) tuple, {"text": ..., "text_pair": ...}, {"image": ...} or {"audio": ...}',
            remedy="convert the row before calling predict",
        )

    def _run_all(self, examples: Sequence[Example], *, batch: int | None) -> list[np.ndarray[Any, Any]]:
        """One array an example, in their order; examples of like length run together."""
        size = batch or self.manifest.workload.batch
        order = sorted(range(len(examples)), key=lambda i: examples[i].length)
        made: dict[int, np.ndarray[Any, Any]] = {}
        for start in range(0, len(order), size):
            some = order[start : start + size]
            chosen = [examples[i] for i in some]
            outputs = answered(self._session, collate(chosen, self.manifest.input_names), scored(self.manifest.answers))
            made |= dict(zip(some, unbatched([outputs], chosen), strict=True))
        return [made[i] for i in range(len(examples))]


def _further(said: str, text: str) -> Iterator[str]:
    """What ``text`` has behind all that it shares with what was ``said``: a later token may change an earlier space."""
    shared = next((n for n, (a, b) in enumerate(zip(said, text, strict=False)) if a != b), min(len(said), len(text)))
    new = text[shared:]
    if new:
        yield new


def _check_settings(settings: Mapping[str, Any]) -> None:
    """Raise InputError for names and kinds of values that no answer is written with."""
    for name, value in settings.items():
        if name not in _SETTINGS or isinstance(value, bool) or not isinstance(value, _SETTINGS[name]):
            raise InputError(
                f"{name} = {value!r}", expected=f"numbers for {', '.join(_SETTINGS)}", remedy="correct or drop it"
            )


def _check_count(name: str, value: object) -> None:
    """Raise InputError for what counts nothing."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise InputError(f"{name} = {value!r}", expected="a whole number of at least 1", remedy="correct or drop it")


def load(
    path: str | Path,
    *,
    threads: int | None = None,
    cores: tuple[int, ...] | None = None,
    verify: bool = True,
) -> Model:
    """Open the bundle at ``path`` after checking hashes, host instructions and golden outputs.

    ``threads`` and ``cores`` default to what the bundle was measured with (as far as this host has them); ``cores``
    bounds the threads, it does not move this process: pin that yourself, as ``hasten run --cores`` does.
    ``verify=False`` skips re-hashing and the golden run, for a start-up that was verified before.
    Raises InputError for a damaged or altered bundle, a newer format, a host that lacks instructions,
    or golden outputs that differ; MissingDependency when the runtime is not installed.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    if verify:
        verify_files(folder, manifest)
    model = open_model(folder, manifest, threads=threads, cores=cores)
    if verify:
        try:
            verify_golden(model)
        except BaseException:
            model.close()
            raise
    return model


def open_model(folder: Path, manifest: Manifest, *, threads: int | None, cores: tuple[int, ...] | None) -> Model:
    """Open the session without the integrity checks, but never on a host without the instructions."""
    from hasten.measure.host import instruction_sets, usable_cores

    check_instructions(manifest, instruction_sets())
    usable = usable_cores()
    wanted = manifest.workload.threads if threads is None else threads
    used = tuple(cores) if cores is not None else usable[: max(1, min(wanted, len(usable)))]
    session = open_session(folder, manifest, threads=min(wanted, len(used)), cores=used)
    processor = open_processor(files_of(folder), max_length=manifest.max_length)
    made = sample(processor).arrays
    if not made.keys() >= set(manifest.input_names):
        session.close()
        raise InputError(
            f"the manifest of {folder} names {', '.join(manifest.input_names)}, and its processor makes "
            f"{', '.join(made)}", expected="a bundle exactly as hasten wrote it", remedy="rebuild it or copy it again",
        )  # fmt: skip
    return Model(manifest, session=session, processor=processor, folder=folder)


def open_session(folder: Path, manifest: Manifest, *, threads: int, cores: tuple[int, ...]) -> Any:
    """The runtime's session on the bundle's model files."""
    from hasten.runtimes import configs, get_runtime

    config = config_from_dict(manifest.recipe["runtime"], configs())
    return get_runtime(config.kind).open(folder / "model", config, threads=threads, cores=cores)


def verify_golden(model: Model) -> float:
    """Re-run the golden examples on this host, where text is written step by step through the cache; returns the
    largest relative difference."""
    golden = read_golden(model.folder)
    task = get_task(model.manifest.task)
    check_shape(golden, labels=model.manifest.labels, per_token=task.per_token)
    batches = golden.followed([model.encode(item) for item in golden.items()])

    def run(batch: Mapping[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        return task.comparable(forced(model.session, batches=[batch])[0] if FORCED in batch else model.run(batch))

    return check_golden(golden, run, batches=batches, tolerance=model.manifest.golden_tolerance)
