"""Read words with a tag each, in the forms that are usual for entities.

Takes a table with words and tags, a text file with a word and its tag a line (CoNLL), or a table of texts with the
character spans of their entities; gives :class:`Rows`: texts whose words are what white space separates, and a tuple
of tags a row. Knows no model: whether the tags fit one is the task's question.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hasten.records import Columns, InputError
from hasten.tasks.columns import one_column
from hasten.tasks.rows import Rows, content_hash
from hasten.tasks.tables import Table, read_table, read_utf8

OUTSIDE = "O"
Tags = tuple[str, ...]

_LINES = {".conll", ".bio", ".iob", ".iob2"}
_BETWEEN_DOCUMENTS = "-DOCSTART-"
_WORDS = ("tokens", "words", "text", "sentence")
_TAGS = ("ner_tags", "tags", "labels", "label", "ner")
_SPANS = ("spans", "entities")


def read_tagged(source: str | Path, *, columns: Columns, labels_wanted: bool = True) -> Rows:
    """Rows of words and tags; without ``labels_wanted`` no tags are looked for. A text that was given whole stays as
    it is, unless it comes with spans: then punctuation becomes words of its own.

    Raises InputError for a malformed file, row or line.
    """
    path = Path(source).expanduser()
    if path.suffix.lower() in _LINES:
        names: Sequence[str] = ("word", "tag")
        texts, tags = _sentences(path, labels_wanted=labels_wanted)
    else:
        table = _table(source)
        names = table.names
        texts, tags = _columns(table, columns, source=str(source), labels_wanted=labels_wanted)
    if not any(text.strip() for text in texts):
        raise InputError(f"{source} holds no words", expected="texts", remedy="give another file, or name the column")
    return Rows(
        texts=tuple(texts),
        pairs=None,
        labels=None if tags is None else tuple(tags),
        source=str(source),
        sha256=content_hash(texts, tags),
        column_names=tuple(names),
    )


# --------------------------------------------------------------------------- a word and its tag a line


def _sentences(path: Path, *, labels_wanted: bool) -> tuple[list[str], list[Tags] | None]:
    """Blank lines separate sentences; the first field is the word and the last its tag."""
    if not path.is_file():
        raise InputError(f"no such file: {path}", expected="a file with a word and its tag a line", remedy="check it")
    texts: list[str] = []
    found: list[Tags] = []
    words: list[str] = []
    tags: list[str] = []
    for number, line in enumerate([*read_utf8(path).split("\n"), ""], start=1):
        fields = re.split(r"[ \t]+", line.strip(" \t\r"))
        if fields[0] and fields[0] != _BETWEEN_DOCUMENTS:
            if labels_wanted and len(fields) < 2:
                raise InputError(
                    f"{path} line {number}: the word {fields[0]!r} has no tag",
                    expected="a word and its tag, with a space or tab between them, on every line that is not blank",
                    remedy="correct the line",
                )
            words.append(_joined([fields[0]], where=f"{path} line {number}"))
            tags.append(fields[-1])
        elif words:
            texts.append(" ".join(words))
            found.append(tuple(tags))
            words, tags = [], []
    return texts, found if labels_wanted else None


# --------------------------------------------------------------------------- tables


def _table(source: str | Path) -> Table:
    table = read_table(source)
    if not table.rows:
        raise InputError(f"{source} holds no rows", expected="at least one row", remedy="give another file")
    return _turns(table, source=source) if "userInput" in table.names else table


def _columns(
    table: Table, columns: Columns, *, source: str, labels_wanted: bool
) -> tuple[list[str], list[Tags] | None]:
    words = one_column(table.names, columns.text, usual=_WORDS, flag="--text-column", source=source)
    if words is None:
        raise InputError(
            f"{source} has the columns {', '.join(table.names)}; none has a usual name for the words",
            expected=f"a column such as {', '.join(_WORDS)}",
            remedy="name it with --text-column",
        )
    texts = [
        _joined(row.get(words), where=f"row {number} of {source}: column {words!r}")
        for number, row in enumerate(table.rows, start=1)
    ]
    rest = [name for name in table.names if name != words]
    label = columns.label and one_column(table.names, columns.label, usual=(), flag="--label-column", source=source)
    for usual in (_TAGS, _SPANS):
        label = label or one_column(rest, None, usual=usual, flag="--label-column", source=source)
    if label is None or not labels_wanted:
        return texts, None
    values = [row.get(label) for row in table.rows]
    where = [f"row {number} of {source}: column {label!r}" for number in range(1, len(values) + 1)]
    if label in _SPANS or any(_is_span_list(value) for value in values):
        tagged = [_spanned(text, value, where=place) for text, value, place in zip(texts, values, where, strict=True)]
        return [text for text, _ in tagged], [tags for _, tags in tagged]
    return texts, [_tags(value, where=place) for value, place in zip(values, where, strict=True)]


def _joined(value: Any, *, where: str) -> str:
    """One text: words are joined by a space, and lose what would separate them within. A text stays as it is."""
    if isinstance(value, str):
        return value
    words = value if isinstance(value, list) else [value]
    for number, word in enumerate(words, start=1):
        if not isinstance(word, str) or not word.strip():
            raise InputError(
                f"{where}: word {number} is {type(word).__name__} {str(word)[:40]!r}",
                expected="words, each a text that is not empty, or one text with spaces between the words",
                remedy="fill or drop such words together with their tags",
            )
    return " ".join("".join(word.split()) for word in words)


def _tags(value: Any, *, where: str) -> Tags:
    if isinstance(value, str):
        return tuple(value.split())
    if not isinstance(value, list) or not all(isinstance(tag, str | int | float) for tag in value):
        raise InputError(
            f"{where} holds {type(value).__name__} {str(value)[:40]!r}",
            expected="a tag for each word: a list of names or class ids, or one text with spaces between the tags",
            remedy="correct the row, or name another column with --label-column",
        )
    return tuple(str(tag).strip() for tag in value)


# --------------------------------------------------------------------------- spans of characters


def _turns(table: Table, *, source: str | Path) -> Table:
    """RESTAURANTS-8K's form (Coope et al. 2020), whose writers leave out what is zero or empty."""
    rows: list[Mapping[str, Any]] = []
    for number, turn in enumerate(table.rows, start=1):
        try:
            spans = [
                {"start": slot["valueSpan"].get("startIndex", 0), "end": slot["valueSpan"]["endIndex"], **slot}
                for slot in turn.get("labels") or []
            ]
            rows.append({"text": turn["userInput"]["text"], "spans": spans})
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"row {number} of {source} lacks a part of a tagged turn ({type(error).__name__}: {error})",
                expected='{"userInput": {"text"}, "labels": [{"slot", "valueSpan": {"startIndex", "endIndex"}}]}',
                remedy="correct the row",
            ) from error
    return Table(("text", "spans"), rows)


def _is_span_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def _spanned(text: str, value: Any, *, where: str) -> tuple[str, Tags]:
    """The text with its words apart, and B- for the first word of each span and I- for its others.

    Of spans that share a word only the longest counts, of equally long ones the first: a word has one tag.
    """
    if not isinstance(value, list | None):
        raise InputError(f"{where} holds {str(value)[:40]!r}", expected="a list of spans", remedy="correct the row")
    places = separated(text)
    tags = [OUTSIDE] * len(places)
    for start, end, name in sorted((_span(s, where=where) for s in value or ()), key=lambda s: s[0] - s[1]):
        inside = [number for number, (first, last) in enumerate(places) if first < end and last > start]
        if not inside or end > len(text):
            raise InputError(
                f"{where}: the span of {name!r} from character {start} to {end} holds no word, or goes beyond the "
                f"text's {len(text)} characters",
                expected="the first character of the entity and the one after its last",
                remedy="correct the span (characters, not bytes)",
            )
        if all(tags[number] == OUTSIDE for number in inside):
            for number in inside:
                tags[number] = ("B-" if number == inside[0] else "I-") + name
    return " ".join(text[first:last] for first, last in places), tuple(tags)


def _span(found: Any, *, where: str) -> tuple[int, int, str]:
    """First character, the one after the last, name."""
    entry = found if isinstance(found, Mapping) else {}
    start, end, name = entry.get("start"), entry.get("end"), entry.get("label", entry.get("slot"))
    if isinstance(start, int) and isinstance(end, int) and isinstance(name, str) and name and 0 <= start < end:
        return start, end, name
    raise InputError(
        f"{where}: the span {str(found)[:80]!r}",
        expected='{"start": first character, "end": the one after the last, "label": name}',
        remedy="correct the span",
    )


def separated(text: str) -> list[tuple[int, int]]:
    """Where each word begins and ends: at white space, and around every punctuation mark and symbol.

    By Unicode category, so that marks which combine with a letter stay with it.
    """
    places: list[tuple[int, int]] = []
    start = 0
    for number, character in enumerate([*text, " "]):
        alone = unicodedata.category(character)[0] in "PS"
        if alone or character.isspace():
            if start < number:
                places.append((start, number))
            if alone:
                places.append((number, number + 1))
            start = number + 1
    return places
