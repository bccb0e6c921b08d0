"""Golden examples: a few rows with the outputs that the artifact gave where it was built.

Takes a session and token arrays, gives a pass or an error with numbers. The same
artifact must compute the same thing on the host that opens it; int8 kernels on
another CPU sometimes do not, and nothing but running them can tell.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hasten.records import InputError, read_as

FILE_NAME = "golden.json"
Arrays = Mapping[str, np.ndarray[Any, Any]]
Run = Callable[[Arrays], np.ndarray[Any, Any]]


@dataclass(frozen=True, slots=True)
class Golden:
    """Texts (with pairs where the task has them), their token ids, and outputs [N, C]."""

    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    ids: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[float, ...], ...]


def make_golden(
    run: Run,
    *,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    batches: Sequence[Arrays],
) -> Golden:
    """Run each one-row batch and keep what came out."""
    outputs = [run(batch)[0] for batch in batches]
    return Golden(
        texts=tuple(texts),
        pairs=None if pairs is None else tuple(pairs),
        ids=tuple(tuple(int(i) for i in batch["input_ids"][0]) for batch in batches),
        outputs=tuple(tuple(float(np.float32(x)) for x in row) for row in outputs),
    )


def write_golden(folder: Path, golden: Golden) -> None:
    data = {"texts": golden.texts, "pairs": golden.pairs, "ids": golden.ids, "outputs": golden.outputs}
    (folder / FILE_NAME).write_text(json.dumps(data), encoding="utf-8")


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


def check_shape(golden: Golden, *, labels: Sequence[str]) -> None:
    """Raise InputError when there is no example, or not one output a label."""
    widths = {len(row) for row in golden.outputs}
    sound = len(golden.texts) == len(golden.ids) == len(golden.outputs) > 0 and len(widths) == 1
    if not sound or (labels and widths != {len(labels)}):
        raise InputError(
            f"the golden examples have {len(golden.outputs)} rows of {sorted(widths)} outputs for {len(labels)} labels",
            expected="the golden examples that hasten wrote",
            remedy="rebuild the bundle with 'hasten optimize'",
        )


def largest_difference(golden: Golden, outputs: Sequence[np.ndarray[Any, Any]]) -> float:
    """Largest absolute difference, as a share of the golden outputs' largest magnitude."""
    expected = np.asarray(golden.outputs, dtype=np.float64)
    got = np.stack([np.asarray(o, dtype=np.float64) for o in outputs])
    if got.shape != expected.shape or not np.isfinite(got).all():
        return float("inf")
    scale = float(np.abs(expected).max()) or 1.0
    return float(np.abs(got - expected).max()) / scale


def check_golden(golden: Golden, run: Run, *, batches: Sequence[Arrays], tolerance: float) -> float:
    """Re-run the golden examples; returns the largest relative difference.

    Raises InputError when tokenization or outputs differ beyond ``tolerance``: this host, its
    libraries or its CPU compute something else than what was verified.
    """
    for text, expected, batch in zip(golden.texts, golden.ids, batches, strict=True):
        got = tuple(int(i) for i in batch["input_ids"][0])
        if got != expected:
            raise _differs(f"the tokenizer gives other ids for {text[:40]!r}: {got[:8]} instead of {expected[:8]}")
    difference = largest_difference(golden, [run(batch)[0] for batch in batches])
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
