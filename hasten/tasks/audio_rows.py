"""Read recordings and what is said in them, in the forms that are usual for them.

Takes a folder of recordings with a metadata table or a text file beside each, a table with paths (CSV, JSONL) or with
the recordings themselves (Parquet as Hugging Face writes it); gives :class:`Rows` whose texts are the recordings'
names and whose labels what is said. Recordings stay encoded as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hasten.records import Columns, InputError
from hasten.tasks.columns import one_column
from hasten.tasks.reference_rows import references_of
from hasten.tasks.rows import Rows
from hasten.tasks.speech import SUFFIXES, content_of
from hasten.tasks.tables import Table, read_table, read_utf8

_AUDIO = ("audio", "file", "file_name", "path", "filename", "audio_path", "audio_filepath", "recording", "wav")
_SAID = ("text", "transcription", "transcript", "sentence", "normalized_text", "label")
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_FORMS = "a folder of recordings, or a table with an audio column (CSV, JSONL, Parquet)"

Recording = tuple[str, bytes, tuple[str, ...] | None]  # name, content, what is said


def read_recordings(source: str | Path, *, columns: Columns, labels_wanted: bool = True) -> Rows:
    """Rows of any of the forms, in a fixed order; without ``labels_wanted`` no texts are looked for.

    Raises InputError for a form that is none of these, and for files that are missing.
    """
    if columns.text_pair is not None:
        raise InputError(
            f"--text-pair-column {columns.text_pair}", expected="one recording a row", remedy="leave the flag out"
        )
    path = Path(source).expanduser()
    if path.is_dir():
        found, names = _folder(path, columns, labels_wanted)
    elif path.suffix.lower() in SUFFIXES:
        raise InputError(f"{source} is one recording", expected=_FORMS, remedy="give the folder")
    else:
        found, names = _table(source, columns, labels_wanted)
    if not found:
        raise InputError(f"{source} holds no recordings", expected=_FORMS, remedy="give another one")
    said = [text for _, _, text in found if text is not None]
    return Rows(
        texts=tuple(name for name, _, _ in found), pairs=None, labels=tuple(said) if said else None,
        source=str(source), sha256=_hash(found), column_names=tuple(names),
        sounds=tuple(content for _, content, _ in found),
    )  # fmt: skip


def _hash(found: Sequence[Recording]) -> str:
    """Of recordings and texts in their order; names are not content."""
    whole = hashlib.sha256()
    for _, content, said in found:
        whole.update(hashlib.sha256(content).digest())
        whole.update(f"\x1f{said}\x1e".encode("utf-8", "replace"))
    return whole.hexdigest()


def _folder(folder: Path, columns: Columns, labels_wanted: bool) -> tuple[list[Recording], Sequence[str]]:
    """With a metadata table that, else every recording with its text in a ``.txt`` of the same name."""
    table = next((folder / name for name in _METADATA if (folder / name).is_file()), None)
    if table is not None:
        return _table(table, columns, labels_wanted)
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    found: list[Recording] = []
    for file in files:
        said = None
        if labels_wanted:
            beside = file.with_suffix(".txt")
            if not beside.is_file():
                raise InputError(
                    f"{file} has no {beside.name} beside it, and {folder} no metadata.csv",
                    expected="what is said in each recording",
                    remedy="write a metadata.csv with file_name and text, or a .txt beside each",
                )
            said = (read_utf8(beside).strip(),)
        found.append((file.relative_to(folder).as_posix(), file.read_bytes(), said))
    return found, ("audio", "text")


def _table(source: str | Path, columns: Columns, labels_wanted: bool) -> tuple[list[Recording], Sequence[str]]:
    table = read_table(source)
    audio = _column(table, columns.text, source=source)
    others = [name for name in table.names if name != audio]
    said = columns.label if columns.label is not None else next((n for n in _SAID if n in others), None)
    if said is not None:
        one_column(others, said, usual=(), flag="--label-column", source=str(source))
    base, found = Path(source).expanduser().parent, []
    for number, row in enumerate(table.rows, start=1):
        where = f"row {number} of {source}"
        name, content = _recording(row.get(audio), base, number, where=f"{where}: column {audio!r}")
        wanted = labels_wanted and said is not None
        text = references_of(row.get(said or ""), where=f"{where}: column {said!r}") if wanted else None
        found.append((name, content, text))
    return found, table.names


def _column(table: Table, given: str | None, *, source: str | Path) -> str:
    if given is not None:
        return str(one_column(table.names, given, usual=(), flag="--text-column", source=str(source)))
    plain = {name.strip().casefold(): name for name in table.names}
    found = next((plain[name] for name in _AUDIO if name in plain), None)
    if found is None:
        raise InputError(
            f"{source} has the columns {', '.join(table.names)}; none has a usual name for recordings",
            expected=f"a column such as {', '.join(_AUDIO[:4])}", remedy="name it with --text-column",
        )  # fmt: skip
    return found


def _recording(value: Any, base: Path, number: int, *, where: str) -> tuple[str, bytes]:
    """Name and content of a path (from the table's folder on), of bytes, or of both as Hugging Face writes them."""
    name, content = (value.get("path"), value.get("bytes")) if isinstance(value, Mapping) else (value, None)
    if isinstance(name, (bytes, bytearray)):
        name, content = None, name
    if content is not None:
        return str(name or f"recording {number}"), bytes(content)
    if not isinstance(name, str) or not name.strip():
        raise InputError(
            f"{where} holds {type(value).__name__} {str(value)[:40]!r}", expected="a path, or a recording's bytes",
            remedy="fill or drop such rows, or name another column with --text-column",
        )  # fmt: skip
    path = Path(name).expanduser()
    return name, content_of(path if path.is_absolute() else base / path, name=where)
