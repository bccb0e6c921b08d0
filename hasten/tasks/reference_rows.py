"""Rows of texts to write from, with the texts that should be written: prompts, documents, sentences to translate.

Takes the user's table in the field's usual columns, gives :class:`Rows` whose labels are tuples of references, or
``None``. The Hugging Face form of translations (``{"translation": {"en": ..., "de": ...}}``) is known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hasten.records import Columns, InputError
from hasten.tasks.columns import first_usual, one_column
from hasten.tasks.rows import Rows, content_hash
from hasten.tasks.tables import Table, read_table
from hasten.tasks.text_files import is_text, read_text

_PROMPTS = ("prompt", "instruction", "question", "input", "query", "text")
_COMPLETIONS = ("completion", "reference", "references", "response", "output", "answer", "target", "label")
_DOCUMENTS = ("document", "article", "dialogue", "text", "source", "input", "report")
_SUMMARIES = ("summary", "highlights", "abstract", "target", "reference", "headline", "label")
_SOURCES = ("source", "src", "sentence", "text", "input")
_TRANSLATIONS = ("target", "tgt", "reference", "references", "translated", "label")
_PAIRS = "translation"
# What instructions are about, in columns beside them (Alpaca's and Dolly's).
_INSTRUCTION, _ABOUT = "instruction", ("input", "context")


def read_prompts(source: str | Path, *, columns: Columns, labels_wanted: bool = True) -> Rows:
    """Prompts, and completions where there are any; a plain text file is prompts of its paragraphs. An ``instruction``
    is followed by the ``input`` or ``context`` beside it, after an empty line."""
    if is_text(source):
        return read_text(source)
    table = read_table(source)
    if columns.text is None:
        table = _instructed(table, label=columns.label)
    return _rows(table, columns, source, texts=_PROMPTS, references=_COMPLETIONS, wanted=labels_wanted)


def read_documents(source: str | Path, *, columns: Columns, labels_wanted: bool = True) -> Rows:
    """Documents and their summaries."""
    return _read(source, columns, texts=_DOCUMENTS, references=_SUMMARIES, wanted=labels_wanted)


def read_translations(source: str | Path, *, columns: Columns, labels_wanted: bool = True) -> Rows:
    """Sentences and their translations. With a column of both by language, ``columns`` name two languages of it;
    of exactly two, the first is the source."""
    table = read_table(source)
    if _PAIRS in table.names and columns.text not in table.names:
        table, columns = _by_language(table, columns, source=source)
    return _rows(table, columns, source, texts=_SOURCES, references=_TRANSLATIONS, wanted=labels_wanted)


def _read(
    source: str | Path, columns: Columns, *, texts: Sequence[str], references: Sequence[str], wanted: bool
) -> Rows:
    return _rows(read_table(source), columns, source, texts=texts, references=references, wanted=wanted)


def _rows(
    table: Table, columns: Columns, source: str | Path, *, texts: Sequence[str], references: Sequence[str], wanted: bool
) -> Rows:
    if columns.text_pair is not None:
        raise InputError(
            f"--text-pair-column {columns.text_pair}", expected="one text a row to write from",
            remedy="leave the flag out; what should be written is named with --label-column",
        )  # fmt: skip
    if not table.rows:
        raise InputError(f"{source} holds no rows", expected="at least one text", remedy="give another file")
    column = _first(table, columns.text, texts, what="the text to write from", source=source)
    named = [name for name in table.names if name != column]
    label = columns.label if columns.label is not None else first_usual(named, references)
    if columns.label is not None:
        one_column(named, columns.label, usual=(), flag="--label-column", source=str(source))
    numbered = [(f"row {number} of {source}", row) for number, row in enumerate(table.rows, start=1)]
    given = tuple(_text(row.get(column), where=f"{where}: column {column!r}") for where, row in numbered)
    known = None
    if wanted and label is not None:
        known = tuple(references_of(row.get(label), where=f"{where}: column {label!r}") for where, row in numbered)
    return Rows(
        given, None, known, source=str(source), sha256=content_hash(given, None, known), column_names=table.names
    )


def _instructed(table: Table, *, label: str | None) -> Table:
    """Instructions with what they are about behind them."""
    plain = {name.strip().casefold(): name for name in table.names}
    about = next((plain[name] for name in _ABOUT if name in plain and plain[name] != label), None)
    if _INSTRUCTION not in plain or "prompt" in plain or about is None:
        return table
    column = plain[_INSTRUCTION]
    joined: list[Mapping[str, Any]] = [{**row, column: _with(row.get(column), row.get(about))} for row in table.rows]
    return Table(table.names, joined)


def _with(instruction: Any, about: Any) -> Any:
    both = isinstance(instruction, str) and isinstance(about, str) and instruction.strip() and about.strip()
    return f"{instruction}\n\n{about}" if both else instruction


def _first(table: Table, given: str | None, usual: Sequence[str], *, what: str, source: str | Path) -> str:
    """The named column, else the one whose name stands first in ``usual``, else the only one there is."""
    if given is not None:
        return str(one_column(table.names, given, usual=(), flag="--text-column", source=str(source)))
    found = first_usual(table.names, usual)
    if found is None and len(table.names) == 1:
        found = table.names[0]
    if found is None:
        raise InputError(
            f"{source} has the columns {', '.join(table.names)}; none has a usual name for {what}",
            expected=f"a column such as {', '.join(usual[:4])}", remedy="name it with --text-column",
        )  # fmt: skip
    return found


def references_of(value: Any, *, where: str) -> tuple[str, ...]:
    """One text or a list of them, also as JSON. Raises InputError for anything else, and for nothing."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(ValueError, RecursionError):  # else it is a text that begins with a bracket
            value = json.loads(value)
    found = list(value) if isinstance(value, (list, tuple)) else [value]
    if not found or not all(isinstance(text, str) and text.strip() for text in found):
        raise InputError(
            f"{where} holds {_shown(value)}", expected="the text that should be written, or a list of such texts",
            remedy="fill or drop such rows, or name another column with --label-column",
        )  # fmt: skip
    return tuple(found)


def _text(value: Any, *, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(
            f"{where} holds {_shown(value)}", expected="a text in every row",
            remedy="fill or drop such rows, or name another column with --text-column",
        )  # fmt: skip
    return value


def _by_language(table: Table, columns: Columns, *, source: str | Path) -> tuple[Table, Columns]:
    """The pairs' languages as columns of their own."""
    rows = []
    for number, row in enumerate(table.rows, start=1):
        both = row.get(_PAIRS)
        if isinstance(both, str):
            with suppress(ValueError, RecursionError):  # the error below says what it is
                both = json.loads(both)
        if not isinstance(both, Mapping) or len(both) < 2:
            raise InputError(
                f"row {number} of {source}: column {_PAIRS!r} holds {_shown(row.get(_PAIRS))}",
                expected='two texts by language, such as {"en": ..., "de": ...}', remedy="correct the row",
            )  # fmt: skip
        rows.append(both)
    names = tuple(str(name) for name in rows[0])
    if len(names) > 2 and (columns.text is None or columns.label is None):
        raise InputError(
            f"{source} has texts in {', '.join(names)}", expected="one language to read and one to write",
            remedy="name them with --text-column and --label-column",
        )  # fmt: skip
    text = columns.text or next((n for n in names if n != columns.label), names[0])
    label = columns.label or next((n for n in names if n != text), None)
    return Table(names, rows), Columns(text=text, label=label)


def _shown(value: Any) -> str:
    return "nothing" if value is None or value == "" else f"{type(value).__name__} {str(value)[:40]!r}"
