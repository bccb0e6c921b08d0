"""Plain text files as rows: paragraphs, put together until they are worth reading as one text."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from hasten.records import InputError
from hasten.tasks.rows import Rows
from hasten.tasks.tables import read_utf8

SUFFIXES = (".txt", ".text", ".raw", ".tokens", ".md")
_FEWEST_CHARACTERS = 1500


def is_text(source: str | Path) -> bool:
    """Does the name say that this is running text and no table?"""
    return Path(source).suffix.lower() in SUFFIXES


def read_text(source: str | Path) -> Rows:
    """Rows of at least 1,500 characters, cut between paragraphs. Raises InputError for a missing or unreadable file."""
    path = Path(source).expanduser()
    if not path.is_file():
        raise InputError(f"no such file: {source}", expected="a text file", remedy="check the path")
    text = read_utf8(path)
    rows: list[str] = []
    gathered = ""
    for paragraph in re.split(r"(?<=\n)(?=\s*\n)", text):
        gathered += paragraph
        if len(gathered) >= _FEWEST_CHARACTERS:
            rows.append(gathered)
            gathered = ""
    if gathered.strip():
        rows.append(gathered)
    return Rows(
        texts=tuple(rows),
        pairs=None,
        labels=None,
        source=str(source),
        sha256=hashlib.sha256(text.encode("utf-8")).hexdigest(),
        column_names=("text",),
    )
