"""Tables whose fields are separated by commas or tabs, from their text. By the standard library alone.

Takes a file's text, gives column names and rows. Commas come with quoted fields. Tabs come either way: what
spreadsheets write is quoted, what GLUE and Common Voice publish is not, and there a quote is a letter like others.
CoLA's files have no header; they get one.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hasten.records import InputError

Rows = tuple[tuple[str, ...], list[Mapping[str, Any]]]
_LONGEST = 2**26  # characters of a field
# A quote at a field's beginning that is not one around it: none closes it at the end, or one within is not doubled.
_WHOLE = re.compile(r'"(?:[^"]|"")*"')
_BREAK = re.compile(r"\r\n|\n|\r")
_COLA = ("source", "label", "mark", "sentence")


def read_commas(text: str, path: Path) -> Rows:
    """Raises InputError for ragged rows, broken quotes, and names that are missing or there twice."""
    return _read(text, path, separator=",", quoted=True)


def read_tabs(text: str, path: Path) -> Rows:
    """The same; without quotes where the file means none."""
    if _is_cola(text):
        text = "\t".join(_COLA) + "\n" + text
    quoted = _is_quoted(text)
    try:
        return _read(text, path, separator="\t", quoted=quoted)
    except InputError as error:
        if quoted and isinstance(error.__cause__, csv.Error):
            # A quote that nothing closes is more likely none, beside a row of another length: that one is named.
            _read(text, path, separator="\t", quoted=False)
        raise


def _is_quoted(text: str) -> bool:
    """Are the fields that begin with a quote whole, quoted fields? Where every line has as many tabs as the first one,
    each can be looked at by itself; else some field holds a tab or a line break, which only quotes allow."""
    lines = [line for line in _BREAK.split(text) if line]
    if any(line.count("\t") != lines[0].count("\t") for line in lines):
        return True
    return all(_WHOLE.fullmatch(field) for line in lines for field in line.split("\t") if field.startswith('"'))


def _is_cola(text: str) -> bool:
    """``gj04	1		Our friends ...``: where from, 0 or 1, a star or nothing, and the sentence."""
    first = _BREAK.split(text, maxsplit=1)[0].split("\t")
    return len(first) == len(_COLA) and first[1] in ("0", "1") and first[2] in ("", "*")


def _read(text: str, path: Path, *, separator: str, quoted: bool) -> Rows:
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=separator, strict=True,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
    )  # fmt: skip
    previous = csv.field_size_limit(max(csv.field_size_limit(), _LONGEST))
    rows: list[Mapping[str, Any]] = []
    try:
        names = tuple(name.strip() for name in next(reader))
        _check_names(names, path)
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(names):
                raise InputError(
                    f"{path} line {reader.line_num}: {len(cells)} fields, the header has {len(names)}",
                    expected="the same number of fields in every row",
                    remedy='quote texts that hold the separator or line breaks: "like, this"',
                )
            rows.append(dict(zip(names, cells, strict=True)))
    except csv.Error as error:
        raise InputError(
            f"{path} line {reader.line_num}: {error}",
            expected="well-formed, quoted fields",
            remedy="correct the line",
        ) from error
    finally:
        csv.field_size_limit(previous)
    return names, rows


def _check_names(names: tuple[str, ...], path: Path) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not all(names):
        what = f"the column {twice[0]!r} twice" if twice else "a column without a name"
        raise InputError(f"{path}: the header has {what}", expected="distinct names", remedy="correct the first line")
