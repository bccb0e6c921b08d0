"""Golden examples: a few rows with the outputs that the artifact gave where it was built.

Takes a session and token arrays, gives a pass or an error with numbers. The same
artifact must compute the same thing on the host that opens it; int8 kernels on
another CPU sometimes do not, and nothing but running them can tell. Where text is
written, tokens of the answer are part of an example: the steps after the prompt go
through the cache, which the prompt alone says nothing of.

Legend: N tokens that follow a prompt, V outputs of one position.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hasten.measure.writing import FORCED
from hasten.records import InputError, read_as
from hasten.tasks.rows import Rows

FILE_NAME = "golden.json"
STEPS = 4  # tokens of an answer that are compared, at most
_MOST_OF_A_STEP = 1024
_SOUND = "input_features"
_BANDS, _TIMES = 8, 16
_APART = 10  # thousandths: a hundredth of a log-mel's usual span of two
Arrays = Mapping[str, np.ndarray[Any, Any]]
Run = Callable[[Arrays], np.ndarray[Any, Any]]


@dataclass(frozen=True, slots=True)
class Golden:
    """Texts (with pairs, images and sounds, the last two in base64, where the task has them), what the model was given,
    and all its outputs to each row in one line. ``follows``: ids that were then written, where text is; the outputs are
    those before each of them and after the last."""

    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    ids: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[float, ...], ...]
    images: tuple[str, ...] | None = None
    sounds: tuple[str, ...] | None = None
    follows: tuple[tuple[int, ...], ...] | None = None

    def followed(self, batches: Sequence[Arrays]) -> list[Arrays]:
        """The examples' arrays, with what is to be written after each beside them."""
        if self.follows is None:
            return list(batches)
        ids = (np.array([own], dtype=np.int64) for own in self.follows)
        return [{**batch, FORCED: own} for batch, own in zip(batches, ids, strict=True)]

    def items(self) -> list[dict[str, Any]]:
        """The rows as they are given to ``predict``."""
        named: dict[str, Sequence[Any] | None] = {
            "text": self.texts, "text_pair": self.pairs, "image": _decoded(self.images), "audio": _decoded(self.sounds),
        }  # fmt: skip
        columns = {name: column for name, column in named.items() if column is not None}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def make_golden(rows: Rows, *, batches: Sequence[Arrays], outputs: Sequence[np.ndarray[Any, Any]]) -> Golden:
    """``batches`` hold the examples of one row each, with ids to write after them where text is written; ``outputs``
    what came out of each."""
    follows = [tuple(int(i) for i in batch[FORCED][0]) for batch in batches if FORCED in batch]
    return Golden(
        texts=rows.texts,
        pairs=rows.pairs,
        ids=tuple(_given(batch) for batch in batches),
        outputs=tuple(
            tuple(float(x) for x in np.float32(_kept(made, batch)).ravel())
            for made, batch in zip(outputs, batches, strict=True)
        ),
        images=_encoded(rows.images),
        sounds=_encoded(rows.sounds),
        follows=tuple(follows) or None,
    )


def _kept(outputs: np.ndarray[Any, Any], batch: Arrays) -> np.ndarray[Any, Any]:
    """Of the steps of an answer [1, N + 1, V] at most 1,024 numbers each, evenly spread; else everything."""
    return outputs[..., :: max(1, -(-outputs.shape[-1] // _MOST_OF_A_STEP))] if FORCED in batch else outputs


def _encoded(files: Sequence[bytes] | None) -> tuple[str, ...] | None:
    return None if files is None else tuple(base64.b64encode(content).decode("ascii") for content in files)


def _decoded(files: Sequence[str] | None) -> tuple[bytes, ...] | None:
    return None if files is None else tuple(base64.b64decode(text, validate=True) for text in files)


def _given(batch: Arrays) -> tuple[int, ...]:
    """Token ids; of sounds the means of blocks, in thousandths; of anything else a checksum, rounded so that the last
    bits of a mean do not matter."""
    if "input_ids" in batch:
        return tuple(int(i) for i in batch["input_ids"].ravel())
    if _SOUND in batch:
        return _block_means(batch[_SOUND])
    return tuple(zlib.crc32(np.round(batch[name] * 64.0).astype(np.int32).tobytes()) for name in sorted(batch))


def _block_means(features: np.ndarray[Any, Any]) -> tuple[int, ...]:
    """Of [B, M, F] in some hundred blocks: what differs by rounding alone gives nearly the same numbers."""
    bands = np.array_split(features.astype(np.float64), min(_BANDS, features.shape[1]), axis=1)
    blocks = [b for band in bands for b in np.array_split(band, min(_TIMES, features.shape[2]), axis=2)]
    return tuple(round(1000.0 * float(block.mean())) for block in blocks)


def _alike(got: tuple[int, ...], expected: tuple[int, ...], batch: Arrays) -> bool:
    """The same numbers; of sounds nearly the same, since hosts sum in other orders."""
    if "input_ids" in batch or _SOUND not in batch:
        return got == expected
    return len(got) == len(expected) and all(abs(a - b) <= _APART for a, b in zip(got, expected, strict=True))


def write_golden(folder: Path, golden: Golden) -> None:
    (folder / FILE_NAME).write_text(json.dumps(asdict(golden)), encoding="utf-8")


def read_golden(folder: Path) -> Golden:
    """Read the golden file; its integrity was checked by the manifest's hash."""
    try:
        return read_as(Golden, json.loads((folder / FILE_NAME).read_bytes()))
    except (ValueError, OSError) as error:
        raise InputError(
            f"{folder / FILE_NAME} is not readable as golden examples ({error})",
            expected="the golden examples that hasten wrote",
            remedy="rebuild the bundle with 'hasten optimize'",
        ) from error


def check_shape(golden: Golden, *, labels: Sequence[str], per_token: bool = False) -> None:
    """Raise InputError when there is no example, or not an output a label (of every token, where each has its own)."""
    widths = {len(row) for row in golden.outputs}
    beside = (golden.pairs, golden.images, golden.sounds, golden.follows)
    counts = {len(column) for column in beside if column is not None}
    alike = {len(golden.texts), len(golden.ids), len(golden.outputs), *counts} == {len(golden.texts)}
    if not golden.texts or not alike or 0 in widths or _misfit(widths, len(labels), per_token=per_token):
        raise InputError(
            f"the golden examples have {len(golden.outputs)} rows of {sorted(widths)} outputs for {len(labels)} labels",
            expected="the golden examples that hasten wrote",
            remedy="rebuild the bundle with 'hasten optimize'",
        )


def _misfit(widths: set[int], labels: int, *, per_token: bool) -> bool:
    """Can rows of so many outputs not be those of a model with so many labels?"""
    if not labels:
        return False
    return any(width % labels for width in widths) if per_token else widths != {labels}


def largest_difference(golden: Golden, outputs: Sequence[np.ndarray[Any, Any]]) -> float:
    """Largest absolute difference, as a share of the golden outputs' largest magnitude."""
    expected = [np.asarray(row, dtype=np.float64) for row in golden.outputs]
    got = [np.asarray(o, dtype=np.float64).ravel() for o in outputs]
    if any(a.shape != b.shape or not np.isfinite(a).all() for a, b in zip(got, expected, strict=True)):
        return float("inf")
    scale = max(float(np.abs(row).max()) for row in expected) or 1.0
    return max(float(np.abs(a - b).max()) for a, b in zip(got, expected, strict=True)) / scale


def check_golden(golden: Golden, run: Run, *, batches: Sequence[Arrays], tolerance: float) -> float:
    """Re-run the golden examples; returns the largest relative difference.

    ``batches`` are what the model is given, as :meth:`Golden.followed` completes them.
    Raises InputError when tokenization or outputs differ beyond ``tolerance``: this host, its
    libraries or its CPU compute something else than what was verified.
    """
    for text, expected, batch in zip(golden.texts, golden.ids, batches, strict=True):
        got = _given(batch)
        if not _alike(got, expected, batch):
            raise _differs(f"the model is given other numbers for {text[:40]!r}: {got[:8]} instead of {expected[:8]}")
    difference = largest_difference(golden, [_kept(run(batch), batch) for batch in batches])
    if difference > tolerance:
        raise _differs(
            f"the golden outputs differ by {difference:.2%} of their scale, more than the {tolerance:.2%} allowed"
        )
    return difference


def _differs(what: str) -> InputError:
    return InputError(
        what,
        expected="the outputs that were verified when the bundle was made",
        remedy="run 'hasten doctor' to compare versions and CPU with the manifest, then rebuild on this host",
    )
