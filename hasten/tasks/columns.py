"""Which column is the text, the second text, the label?

Takes column names and what the user said, gives names. Finds the usual names by
themselves; where two fit, it asks instead of guessing.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from hasten.records import Columns, InputError

_TEXT = (
    "text", "sentence", "review", "content", "query", "utterance", "sentence1", "sentence_1", "text1", "text_a",
    "premise", "question", "question1", "body", "comment", "message", "tweet", "document", "input", "#1 string",
)  # fmt: skip
_PAIR = (
    "text_pair", "sentence2", "sentence_2", "text2", "text_b", "hypothesis", "question2", "paraphrase", "#2 string",
)  # fmt: skip
LABEL_NAMES = (
    "label",
    "labels",
    "category",
    "intent",
    "class",
    "target",
    "sentiment",
    "score",
    "similarity",
    "rating",
    "y",
    "gold_label",
    "is_duplicate",
)
# MRPC as it was published: a label by this name alone, since elsewhere it is a number beside one.
_FIRST_STRING, _ITS_LABEL = "#1 string", "quality"
# QNLI: a question, and the sentence that may hold its answer.
_QUESTION, _BESIDE_QUESTION = "question", "sentence"


def resolve_columns(names: Sequence[str], wanted: Columns, *, source: str, labels_wanted: bool = True) -> Columns:
    """Columns with every name settled; ``text_pair`` and ``label`` may stay ``None``.

    Raises InputError when a given name is not there, or no or several columns could be the text or the label.
    """
    text = _given(names, wanted.text, "--text-column", source)
    text = text or _text([n for n in names if n != wanted.text_pair], source)
    usual = _PAIR if _plain(text) != _QUESTION else (*_PAIR, _BESIDE_QUESTION)
    pair = _given(names, wanted.text_pair, "--text-pair-column", source)
    pair = pair or _one_of([n for n in names if n != text], usual, "--text-pair-column", source)
    label = _given(names, wanted.label, "--label-column", source)
    if label is None and labels_wanted:
        known = (*LABEL_NAMES, _ITS_LABEL) if _plain(text) == _FIRST_STRING else LABEL_NAMES
        label = _one_of([n for n in names if n not in (text, pair)], known, "--label-column", source)
    return Columns(text=text, text_pair=pair, label=label)


def one_column(names: Sequence[str], given: str | None, *, usual: Sequence[str], flag: str, source: str) -> str | None:
    """The column that the user named, else the one with a usual name, else ``None``.

    Raises InputError when the given name is not there, or several columns have usual names and none the first of them.
    """
    return _given(names, given, flag, source) or _one_of(names, usual, flag, source)


def first_usual(names: Sequence[str], usual: Sequence[str]) -> str | None:
    """The column whose name stands first in ``usual``, but for case and outer spaces; ``None`` without any."""
    plain = {_plain(name): name for name in names}
    return next((plain[_plain(name)] for name in usual if _plain(name) in plain), None)


def _text(names: Sequence[str], source: str) -> str:
    questions = any(_plain(name) == _QUESTION for name in names)
    usual = [name for name in _TEXT if not (questions and name == _BESIDE_QUESTION)]
    found = _one_of(names, usual, "--text-column", source)
    if found:
        return found
    if len(names) == 1:
        return names[0]
    raise InputError(
        f"{source} has the columns {', '.join(names)}; none has a usual name for the text",
        expected=f"a column such as {', '.join(_TEXT[:5])}",
        remedy="name it with --text-column",
    )


def _one_of(names: Sequence[str], usual: Sequence[str], flag: str, source: str) -> str | None:
    """The one column with a usual name; its plain form (``text``, ``label``) wins over others."""
    matches = [name for name in names if _plain(name) in usual]
    exact = [name for name in matches if _plain(name) == usual[0]]
    if len(exact) == 1:
        return exact[0]
    if len(matches) > 1:
        raise InputError(
            f"{source}: the columns {', '.join(matches)} could all be meant",
            expected="one column for it",
            remedy=f"choose with {flag}",
        )
    return matches[0] if matches else None


def _plain(name: str) -> str:
    """A name but for case and outer spaces."""
    return name.strip().casefold()


def _given(names: Sequence[str], name: str | None, flag: str, source: str) -> str | None:
    if name is None or name in names:
        return name
    near = difflib.get_close_matches(name, names, n=1)
    raise InputError(
        f"{source} has no column {name!r}",
        expected=f"one of {', '.join(names)}",
        remedy=f"did you mean {flag} {near[0]}?" if near else f"correct {flag}",
    )
