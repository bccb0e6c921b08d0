"""Open a bundle and run it: the online end of the bridge.

Takes a bundle's path, gives a :class:`Model`. Needs the bundle's runtime library,
``tokenizers`` and numpy; imports no training code (no torch unless the bundle's own
runtime is torch).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from hasten.bundle.golden import check_golden, check_shape, read_golden
from hasten.bundle.manifest import Manifest, check_instructions, read_manifest, verify_files
from hasten.records import InputError, config_from_dict
from hasten.tasks.tokenize import Encoded, Tokenizer, encode_rows, pad_batch

Row = str | tuple[str, str] | Mapping[str, Any]
Prediction = dict[str, Any] | list[float]


class Model:
    """An opened bundle. Thread-safe as far as its runtime is; use one per worker for torch bundles."""

    def __init__(self, manifest: Manifest, *, session: Any, tokenizer: Tokenizer, folder: Path) -> None:
        from hasten.tasks import get_task

        self.manifest, self.folder = manifest, folder
        self._session, self._tokenizer = session, tokenizer
        self._task = get_task(manifest.task)

    @property
    def precision(self) -> str:
        """The precision that really runs on this host."""
        return str(self._session.precision)

    @property
    def input_names(self) -> tuple[str, ...]:
        """The arrays that :meth:`run` takes."""
        return self.manifest.input_names

    def run(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        """Tokenized input (int64 [B, L] by name) to raw outputs (float32 [B, C])."""
        missing = set(self.manifest.input_names) - set(arrays)
        if missing:
            raise InputError(
                f"no array named {', '.join(sorted(missing))} (got {', '.join(sorted(arrays))})",
                expected=f"arrays {', '.join(self.manifest.input_names)}, int64 [batch, length]",
                remedy="pass every input, or use predict(rows) with text",
            )
        outputs: np.ndarray[Any, Any] = self._session.run({n: arrays[n] for n in self.manifest.input_names})
        return outputs

    def predict(self, rows: Iterable[Row], *, batch: int | None = None) -> list[Prediction]:
        """One record per row, in input order.

        ``rows`` are texts, (text, pair) tuples or mappings with ``text`` (and ``text_pair``). Rows of like
        length share a batch of at most ``batch`` (default: the batch the bundle was measured at, since
        dynamically quantized models may round a little differently in other company).
        Returns ``{"label", "score", "scores"}`` for classification, a list of floats for embeddings; for a pair of
        texts to embed ``{"similarity", "vectors"}`` with both vectors and their cosine.
        """
        if isinstance(rows, (str, bytes, Mapping)):
            raise InputError(
                f"predict got one {type(rows).__name__}", expected="a list of rows", remedy="wrap it: [row]"
            )
        sequences = [self._encode(row, number) for number, row in enumerate(rows)]
        if not sequences:
            return []
        decoded = iter(
            self._task.decode(self._outputs([e for own in sequences for e in own], batch=batch), self.manifest.labels)
        )
        return [_one_or_pair([next(decoded) for _ in own]) for own in sequences]

    def truncated(self, rows: Iterable[Row]) -> int:
        """How many rows are longer than the model and would be cut."""
        return sum(any(e.truncated for e in self._encode(row, number)) for number, row in enumerate(rows))

    def encode(self, row: Row) -> dict[str, np.ndarray[Any, Any]]:
        """One row as arrays [1, L], or [2, L] for a pair of texts to embed."""
        return pad_batch(self._encode(row, 0), self.manifest.input_names)

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

    def _encode(self, row: Row, number: int) -> list[Encoded]:
        """The row's sequences: one, or two where the task embeds the texts of a pair apart."""
        if isinstance(row, str):
            return self._sequences(row, None)
        if isinstance(row, tuple) and len(row) == 2 and all(isinstance(text, str) for text in row):
            return self._sequences(row[0], row[1])
        if isinstance(row, Mapping) and isinstance(row.get("text"), str):
            pair = row.get("text_pair")
            if pair is None or isinstance(pair, str):
                return self._sequences(row["text"], pair)
        raise InputError(
            f"row {number} is {type(row).__name__}: {str(row)[:60]!r}",
            expected='a text, a (text, pair) tuple, or {"text": ..., "text_pair": ...}',
            remedy="convert the row before calling predict",
        )

    def _sequences(self, text: str, pair: str | None) -> list[Encoded]:
        return encode_rows(self._tokenizer, [text], [pair], apart=self._task.pairs_apart)

    def _outputs(self, encoded: Sequence[Encoded], *, batch: int | None) -> np.ndarray[Any, Any]:
        size = batch or self.manifest.workload.batch
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].ids))
        outputs: list[np.ndarray[Any, Any] | None] = [None] * len(encoded)
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            made = self._session.run(pad_batch([encoded[i] for i in chosen], self.manifest.input_names))
            for i, row in zip(chosen, made, strict=True):
                outputs[i] = row
        return np.stack([o for o in outputs if o is not None])


def _one_or_pair(records: list[Any]) -> Prediction:
    """A sequence's own record, or what the vectors of a pair say together."""
    if len(records) == 1:
        only: Prediction = records[0]
        return only
    a, b = (np.asarray(vector, dtype=np.float64) for vector in records)
    cosine = float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))
    return {"similarity": cosine, "vectors": records}


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
    tokenizer = Tokenizer(
        (folder / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"), max_length=manifest.max_length
    )
    return Model(manifest, session=session, tokenizer=tokenizer, folder=folder)


def open_session(folder: Path, manifest: Manifest, *, threads: int, cores: tuple[int, ...]) -> Any:
    """The runtime's session on the bundle's model files."""
    from hasten.runtimes import configs, get_runtime

    config = config_from_dict(manifest.recipe["runtime"], configs())
    return get_runtime(config.kind).open(folder / "model", config, threads=threads, cores=cores)


def verify_golden(model: Model) -> float:
    """Re-run the golden examples on this host; returns the largest relative difference."""
    golden = read_golden(model.folder)
    check_shape(golden, labels=model.manifest.labels)
    pairs: Sequence[str | None] = golden.pairs or [None] * len(golden.texts)
    batches = [model.encode({"text": t, "text_pair": p}) for t, p in zip(golden.texts, pairs, strict=True)]
    return check_golden(golden, model.run, batches=batches, tolerance=model.manifest.golden_tolerance)
