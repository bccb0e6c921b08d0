"""Read recordings and what is said in them, in the forms that are usual for them.

Takes a folder of recordings with a metadata table, a text file beside each or one of all in a folder (LibriSpeech's
``*.trans.txt``), a table with paths (CSV, TSV as Common Voice writes it, JSONL) or with the recordings themselves
(Parquet as Hugging Face writes it); gives :class:`Rows` whose texts are the recordings' names and whose labels what is
said. Recordings stay encoded as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os.path import isfile
from pathlib import Path
from typing import Any

from hasten.records import Columns, InputError
from hasten.tasks.columns import first_usual, one_column
from hasten.tasks.file_rows import File, Forms, Found, contents_of, read_files, rows_of
from hasten.tasks.reference_rows import references_of
from hasten.tasks.rows import Rows
from hasten.tasks.speech import SUFFIXES, content_of
from hasten.tasks.tables import Table, read_table, read_utf8

_AUDIO = ("audio", "file", "file_name", "path", "filename", "audio_path", "audio_filepath", "recording", "wav")
_SAID = ("text", "transcription", "transcript", "sentence", "normalized_text", "label")
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
# LibriSpeech: of all recordings in a folder, a line each, its name in front.
_LINES = ".trans.txt"
# Common Voice: what its tables name lies in a folder beside them.
_CLIPS = "clips"
_FORMS = "a folder of recordings, or a table with an audio column (CSV, JSONL, Parquet)"

# Other ways to keep sound: skipped in a folder, they would be rows that are lost.
_UNREAD = (".mp3", ".m4a", ".aac", ".opus", ".wma", ".aif", ".aiff", ".amr", ".webm", ".mp4")


def read_recordings(source: str | Path, *, columns: Columns, labels_wanted: bool = True) -> Rows:
    """Rows of any of the forms, in a fixed order; without ``labels_wanted`` no texts are looked for.

    Raises InputError for a form that is none of these, and for files that are missing.
    """
    forms = Forms(
        what="recording", suffixes=SUFFIXES, expected=_FORMS,
        folder=lambda path: _folder(path, columns, labels_wanted),
        table=lambda given: _table(given, columns, labels_wanted),
    )  # fmt: skip
    found = read_files(source, forms, columns=columns)
    return rows_of(found, source=source, sounds=contents_of(found))


def _folder(folder: Path, columns: Columns, labels_wanted: bool) -> Found:
    """With a metadata table that, else every recording with its text in a ``.txt`` of the same name, or in a line of
    its folder's ``*.trans.txt``."""
    table = next((folder / name for name in _METADATA if (folder / name).is_file()), None)
    if table is not None:
        return _table(table, columns, labels_wanted)
    seen = sorted(path for path in folder.rglob("*") if not (path.name.startswith(".") or path.is_dir()))
    unread = [path for path in seen if path.suffix.lower() in _UNREAD]
    if unread:
        raise InputError(
            f"{len(unread)} recordings of {folder}, such as {unread[0].name}, are in a form that is not read here",
            expected=f"files that end in {', '.join(SUFFIXES)}",
            remedy="convert them, for example: ffmpeg -i IN -ar 16000 -ac 1 OUT.flac",
        )  # fmt: skip
    files = [path for path in seen if path.suffix.lower() in SUFFIXES]
    lines = _in_lines(seen) if labels_wanted else {}
    found: list[File] = []
    for file in files:
        said = (_said_in(file, lines, folder=folder),) if labels_wanted else None
        found.append(File(file.relative_to(folder).as_posix(), file.read_bytes(), said))
    return found, ("audio", "text")


def _in_lines(seen: Sequence[Path]) -> dict[Path, str]:
    """Recordings, without their endings, to what LibriSpeech's files say of them."""
    found: dict[Path, str] = {}
    for path in seen:
        if path.name.endswith(_LINES):
            lines = (line.strip().partition(" ") for line in read_utf8(path).split("\n"))
            found |= {path.parent / name: said.strip() for name, _, said in lines if name}
    return found


def _said_in(file: Path, lines: Mapping[Path, str], *, folder: Path) -> str:
    beside = file.with_suffix(".txt")
    said = read_utf8(beside).strip() if beside.is_file() else lines.get(file.with_suffix(""), "")
    if not said:
        raise InputError(
            f"{file} has no {beside.name} beside it, no line in a *{_LINES}, and {folder} no metadata.csv",
            expected="what is said in each recording",
            remedy="write a metadata.csv with file_name and text, or a .txt beside each",
        )
    return said


def _table(source: str | Path, columns: Columns, labels_wanted: bool) -> Found:
    table = read_table(source)
    audio = _column(table, columns.text, source=source)
    others = [name for name in table.names if name != audio]
    said = columns.label if columns.label is not None else first_usual(others, _SAID)
    if said is not None:
        one_column(others, said, usual=(), flag="--label-column", source=str(source))
    base = Path(source).expanduser().parent
    found: list[File] = []
    for number, row in enumerate(table.rows, start=1):
        where = f"row {number} of {source}"
        name, content = _recording(row.get(audio), base, number, where=f"{where}: column {audio!r}")
        wanted = labels_wanted and said is not None
        text = references_of(row.get(said or ""), where=f"{where}: column {said!r}") if wanted else None
        found.append(File(name, content, text))
    return found, table.names


def _column(table: Table, given: str | None, *, source: str | Path) -> str:
    if given is not None:
        return str(one_column(table.names, given, usual=(), flag="--text-column", source=str(source)))
    found = first_usual(table.names, _AUDIO)
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
    if isinstance(content, (bytes, bytearray)):
        return str(name or f"recording {number}"), bytes(content)
    if content is not None or not isinstance(name, str) or not name.strip() or "\0" in name:
        raise InputError(
            f"{where} holds {type(value).__name__} {str(value)[:40]!r}", expected="a path, or a recording's bytes",
            remedy="fill or drop such rows, or name another column with --text-column",
        )  # fmt: skip
    return name, content_of(_inside(base, name, where=where), name=where)


def _inside(base: Path, name: str, *, where: str) -> Path:
    """The file that a table names. A table may be a stranger's: what lies outside of its folder is not for it to name,
    nor a link that leads there."""
    folder = base.resolve()
    path = next((p for p in ((base / name).resolve(), (base / _CLIPS / name).resolve()) if isfile(p)), None)
    path = path or (base / name).resolve()
    if not path.is_relative_to(folder):
        raise InputError(
            f"{where} names {name[:80]!r}, a file outside of {folder}", expected="paths within the table's folder",
            remedy="put the table beside or above its recordings",
        )  # fmt: skip
    return path
