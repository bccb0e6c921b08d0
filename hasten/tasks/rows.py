"""Read the user's rows: texts, pairs and labels from a file or a dataset id.

Takes CSV, TSV, JSONL or Parquet (by suffix) or a ``datasets`` hub id, gives
:class:`Rows`. CSV, TSV and JSONL are read with the standard library, so that serving
needs nothing more. Every malformed file is an InputError with its line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hasten.records import Columns, InputError
from hasten.tasks.columns import resolve_columns
from hasten.tasks.tables import Table, read_table
from hasten.tasks.task import Item

_TEXT_LIMIT = 1_000_000


@dataclass(frozen=True, slots=True)
class Rows:
    """Columns of equal length; ``pairs``, ``labels`` and ``images`` where the data has them.

    What a label is depends on the task: a name, a number, a tag for each word, the answers of a question. ``images``
    and ``sounds`` are encoded files' bytes, and the texts then their names. ``sha256`` is of the content.
    """

    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    labels: tuple[Any, ...] | None
    source: str
    sha256: str
    column_names: tuple[str, ...] = ()
    images: tuple[bytes, ...] | None = None
    sounds: tuple[bytes, ...] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, index: Sequence[int]) -> Rows:
        """The rows at ``index``, in that order."""
        return replace(
            self,
            texts=tuple(self.texts[i] for i in index),
            pairs=None if self.pairs is None else tuple(self.pairs[i] for i in index),
            labels=None if self.labels is None else tuple(self.labels[i] for i in index),
            images=None if self.images is None else tuple(self.images[i] for i in index),
            sounds=None if self.sounds is None else tuple(self.sounds[i] for i in index),
        )

    def items(self) -> list[Item]:
        """Every row as a user gives it to ``predict``."""
        named = {"text": self.texts, "text_pair": self.pairs, "image": self.images, "audio": self.sounds}
        columns = {name: column for name, column in named.items() if column is not None}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def keys(self) -> list[str]:
        """What makes a row another one than its neighbour: the file, or the text but for case and white space."""
        files = self.images if self.images is not None else self.sounds
        if files is not None:
            return [hashlib.sha256(content).hexdigest() for content in files]
        pairs = self.pairs or ("",) * len(self)
        return ["\x1f".join(map(key_of, both)) for both in zip(self.texts, pairs, strict=True)]


def key_of(text: str) -> str:
    """A text's identity: case and white space do not make another text."""
    return " ".join(text.split()).casefold()


def of_items(items: Sequence[Item], *, source: str = "predict") -> Rows:
    """Rows without labels, from items of one kind (all with a pair, or none)."""
    paired, pictured, heard = ((n in items[0]) if items else False for n in ("text_pair", "image", "audio"))
    return Rows(
        texts=tuple(str(item.get("text", "")) for item in items),
        pairs=tuple(item["text_pair"] for item in items) if paired else None,
        labels=None,
        source=source,
        sha256="",
        images=tuple(item["image"] for item in items) if pictured else None,
        sounds=tuple(item["audio"] for item in items) if heard else None,
    )


def read_rows(source: str | Path, *, columns: Columns, labels_wanted: bool = True) -> Rows:
    """Read and check a data source; without ``labels_wanted`` no label column is looked for.

    Raises InputError for a missing, empty, binary, wrongly encoded or ragged file, and for columns that are
    missing or ambiguous; MissingDependency when Parquet or a hub id needs a library that is not installed.
    """
    table = read_table(source)
    if not table.rows:
        raise InputError(
            f"{source} holds no rows",
            expected="a header line and at least one row",
            remedy="give another file",
        )
    chosen = resolve_columns(table.names, columns, source=str(source), labels_wanted=labels_wanted)
    texts = _strings(table, chosen.text, source=source)
    pairs = _strings(table, chosen.text_pair, source=source) if chosen.text_pair else None
    labels = label_texts(table, chosen.label, source=source) if chosen.label else None
    return Rows(
        texts=tuple(texts),
        pairs=None if pairs is None else tuple(pairs),
        labels=None if labels is None else tuple(labels),
        source=str(source),
        sha256=content_hash(texts, pairs, labels),
        column_names=table.names,
    )


def content_hash(*parts: Any) -> str:
    """SHA-256 of a file's rows, whatever form they came in."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode("utf-8", "replace")).hexdigest()


def _strings(table: Table, column: str | None, *, source: str | Path) -> list[str]:
    assert column is not None
    values = []
    for number, row in enumerate(table.rows, start=1):
        value = row.get(column)
        if not isinstance(value, str):
            raise InputError(
                f"row {number} of {source}: column {column!r} holds {_shown(value)}",
                expected="a text in every row",
                remedy="fill or drop such rows, or name another column with --text-column",
            )
        if len(value) > _TEXT_LIMIT:
            raise InputError(
                f"row {number} of {source}: a text of {len(value):,} characters",
                expected=f"at most {_TEXT_LIMIT:,} characters",
                remedy="split long documents into rows",
            )
        values.append(value)
    if not any(value.strip() for value in values):
        raise InputError(
            f"column {column!r} of {source} is empty in every row",
            expected="texts",
            remedy="name another column",
        )
    return values


def label_texts(table: Table, column: str, *, source: str | Path) -> list[str]:
    """The column as texts without outer spaces; raises InputError for a row without a label."""
    values = []
    for number, row in enumerate(table.rows, start=1):
        value = row.get(column)
        if value is None or isinstance(value, (Mapping, list)) or not str(value).strip():
            raise InputError(
                f"row {number} of {source}: label column {column!r} holds {_shown(value)}",
                expected="a label in every row",
                remedy="fill or drop such rows, or name another column with --label-column",
            )
        values.append(_label_text(value))
    return values


def _label_text(value: Any) -> str:
    """``1.0`` from a float column is the id ``1``."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _shown(value: Any) -> str:
    return "nothing" if value is None or value == "" else f"{type(value).__name__} {str(value)[:40]!r}"
