"""Rows that are files, such as images and recordings: in a folder, named in a table, or held by it.

Takes what reads each of these forms, gives :class:`Rows` whose texts are the files' names. Files stay encoded as they
are. Knows neither images nor sound.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten.records import Columns, InputError
from hasten.tasks.rows import Rows


@dataclass(frozen=True, slots=True)
class File:
    """A row on its way; ``label`` is ``None`` where there is none."""

    name: str
    content: bytes
    label: Any


# Rows in their order, and the names of the columns that they came from.
Found = tuple[list[File], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Forms:
    """How files of a kind (``what``: "image") come. ``expected`` says it to people; ``special`` reads forms of its own
    by their path, and gives ``None`` for all others."""

    what: str
    suffixes: Sequence[str]
    expected: str
    folder: Callable[[Path], Found]
    table: Callable[[str | Path], Found]
    special: Callable[[Path], Found | None] = lambda _: None


def read_files(source: str | Path, forms: Forms, *, columns: Columns) -> Found:
    """The rows, at least one. Raises InputError for a form that is none of these, and whatever the readers raise."""
    if columns.text_pair is not None:
        raise InputError(
            f"--text-pair-column {columns.text_pair}", expected=f"one {forms.what} a row", remedy="leave the flag out"
        )
    path = Path(source).expanduser()
    found = forms.folder(path) if path.is_dir() else forms.special(path)
    if found is None and path.suffix.lower() in forms.suffixes:
        raise InputError(f"{source} is one {forms.what}", expected=forms.expected, remedy="give the folder")
    files, names = found if found is not None else forms.table(source)
    if not files:
        raise InputError(f"{source} holds no {forms.what}s", expected=forms.expected, remedy="give another one")
    return files, names


def rows_of(found: Found, *, source: str | Path, **contents: tuple[bytes, ...]) -> Rows:
    """``contents`` is ``images`` or ``sounds``, as :class:`Rows` names them."""
    files, names = found
    labels = tuple(file.label for file in files if file.label is not None)
    return Rows(
        texts=tuple(file.name for file in files), pairs=None, labels=labels or None, source=str(source),
        sha256=_hash(files), column_names=tuple(names), **contents,
    )  # fmt: skip


def contents_of(found: Found) -> tuple[bytes, ...]:
    """The encoded files."""
    return tuple(file.content for file in found[0])


def _hash(files: Sequence[File]) -> str:
    """Of contents and labels in their order; names are not content."""
    whole = hashlib.sha256()
    for file in files:
        whole.update(hashlib.sha256(file.content).digest())
        whole.update(f"\x1f{file.label}\x1e".encode("utf-8", "replace"))
    return whole.hexdigest()
