"""Predict a file of rows with a bundle.

Takes a bundle and a data file, gives one record per row in input order. Imports no
training code; only reading Parquet or a hub dataset needs more than the serving extras.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hasten.pipeline.request import parse_cores, parse_threads
from hasten.records import Columns, InputError

_CHUNK = 256


def predict_file(
    bundle: str | Path,
    *,
    data: str,
    batch: int | None = None,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | None = None,
    threads: int | None = None,
    cores: str | None = None,
    out: Path | None = None,
) -> Iterator[Any]:
    """Predictions of ``data``'s rows, one by one; raises InputError for bad settings at once, and for a bad bundle or
    file before the first one."""
    if out is not None and out.is_dir():
        raise InputError(f"--out {out} is a folder", expected="a file to write", remedy="name a file in it")
    if out is not None and not out.parent.is_dir():
        raise InputError(f"no folder {out.parent}", expected="an existing folder for --out", remedy="make it first")
    if batch is not None and batch < 1:
        raise InputError(f"--batch {batch}", expected="a whole number of at least 1", remedy="correct the flag")
    used = parse_cores(cores)
    wide = None if threads is None else parse_threads(threads, used)
    columns = Columns(text_column, text_pair_column, label_column)
    return _predicted(bundle, data, columns, batch=batch, threads=wide, cores=None if cores is None else used)


def _predicted(
    bundle: str | Path, data: str, columns: Columns, *, batch: int | None, threads: int | None,
    cores: tuple[int, ...] | None,
) -> Iterator[Any]:  # fmt: skip
    from hasten.bundle import load
    from hasten.tasks import get_task

    if cores is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)  # before any thread pool is made
    with load(bundle, threads=threads, cores=cores) as model:
        items = get_task(model.manifest.task).read(data, columns=columns, labels_wanted=False).items()
        for start in range(0, len(items), _CHUNK):
            yield from model.predict(items[start : start + _CHUNK], batch=batch)
