"""Read a table from disk or a dataset hub.

Takes a path or id, gives names and rows as plain mappings. CSV, TSV and JSONL by the
standard library (:mod:`hasten.tasks.separated`), Parquet by pyarrow, hub ids by ``datasets``.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten.records import InputError, MissingDependency
from hasten.tasks.separated import read_commas, read_tabs

_FORMS = "CSV, TSV, JSONL or Parquet, named by their suffix"
_JSON_LINES = {".jsonl", ".ndjson", ".json"}


@dataclass(frozen=True, slots=True)
class Table:
    """Column names in order, and one mapping per row."""

    names: tuple[str, ...]
    rows: list[Mapping[str, Any]]


def read_table(source: str | Path) -> Table:
    """Dispatch on what the source is. Raises InputError, MissingDependency."""
    path = Path(source).expanduser()
    if path.is_dir():
        raise InputError(
            f"{source} is a folder", expected=f"a file: {_FORMS}",
            remedy="give the file itself; a folder of images is for --task image-classification",
        )  # fmt: skip
    if not path.exists():
        return _from_hub(str(source))
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet(path)
    if suffix not in {".csv", ".tsv", ".tab", *_JSON_LINES}:
        raise InputError(f"{source} ends in {suffix or 'no suffix'}", expected=_FORMS, remedy="rename or convert it")
    text = read_utf8(path)
    if suffix in _JSON_LINES:
        return _json_lines(text, path)
    return Table(*(read_commas if suffix == ".csv" else read_tabs)(text, path))


def read_utf8(path: Path) -> str:
    """The text of a file. Raises InputError for an empty or binary one, and where it is not UTF-8, with the line."""
    content = path.read_bytes()
    if not content.removeprefix(codecs.BOM_UTF8).strip():
        wanted = "text" if path.suffix.lower() == ".txt" else "a header line and rows"
        raise InputError(f"{path} is empty", expected=wanted, remedy="give another file")
    if b"\0" in content:
        raise InputError(
            f"{path} has a zero byte at position {content.index(0)}: it is binary, or UTF-16",
            expected="UTF-8 text",
            remedy="convert it, for example: iconv -f UTF-16 -t UTF-8",
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path} line {line}: byte 0x{content[error.start]:02x} at position {error.start} is not UTF-8",
            expected="UTF-8 text",
            remedy="convert it, for example: iconv -f LATIN1 -t UTF-8",
        ) from error


def _json_lines(text: str, path: Path) -> Table:
    if path.suffix.lower() == ".json" and text.lstrip().startswith("["):
        return _from_records(_parsed(text, path, line=1), path)
    _check_lines(text, path)
    # Not splitlines: U+2028 and its like end no line of JSON.
    lines = ((number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())
    return _from_records([_parsed(line, path, line=number) for number, line in lines], path)


def _check_lines(text: str, path: Path) -> None:
    """Raise InputError for one object that is written over many lines: its first line alone says nothing."""
    if text.lstrip()[:1] != "{" or text.strip().partition("\n")[0].rstrip().endswith("}"):
        return
    whole: Any = None
    with suppress(ValueError, RecursionError):  # lines, of which one may be wrong
        whole = json.loads(text)
    if isinstance(whole, dict):
        raise InputError(
            f"{path} is one JSON object over many lines ({', '.join(str(name)[:20] for name in list(whole)[:5])})",
            expected="an object a line, or a list of objects",
            remedy="write its rows that way; SQuAD's own form is for --task question-answering",
        )


def _parsed(text: str, path: Path, *, line: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        whole = path.suffix.lower() == ".json"
        raise InputError(
            f"{path} line {line}: {error}",
            expected="one JSON object per line" + (", or one whole JSON value" if whole else ""),
            remedy="correct the line" + ("; a file that was cut short ends in the middle of one" if whole else ""),
        ) from error


def _from_records(records: list[Any], path: Path) -> Table:
    names: dict[str, None] = {}
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict):
            raise InputError(
                f"{path} row {number} is a {type(record).__name__}",
                expected="a JSON object",
                remedy="correct the row",
            )
        names.update(dict.fromkeys(record))
    return Table(tuple(names), records)


def _parquet(path: Path) -> Table:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise MissingDependency("pyarrow", extra="optimize") from error
    try:
        table = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        raise InputError(f"{path}: {error}", expected="a Parquet file", remedy="write it again") from error
    return Table(tuple(table.column_names), table.to_pylist())


def _from_hub(source: str) -> Table:
    """``org/name`` or ``org/name:split`` through ``datasets``; its own scripts never run."""
    found = re.fullmatch(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))?", source)
    if not found or Path(source).suffix in {".csv", ".tsv", ".parquet", *_JSON_LINES}:
        raise InputError(f"no such file: {source}", expected=_FORMS, remedy="check the path")
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MissingDependency("datasets", extra="hub") from error
    name, split = found.group(1), found.group(2) or "test"
    try:
        data = load_dataset(name, split=split)
    except Exception as error:  # the library raises its own, the hub's and OSError alike
        raise InputError(
            f"{source} is no local file, and the hub did not give it ({str(error).strip().splitlines()[0][:160]})",
            expected="an existing file, or a dataset id (org/name:split) that can be reached or is cached",
            remedy="check the spelling and the network, or download it and give the file",
        ) from error
    return Table(tuple(data.column_names), [dict(row) for row in data])
