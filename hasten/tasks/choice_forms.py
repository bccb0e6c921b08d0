"""Two forms of multiple choice that are no question with answers behind it: COPA's and Winogrande's.

COPA asks for the cause or the effect of a premise: they become one sentence, joined by "because" or "therefore", as
Gordon, Kozareva and Roemmele 2012 are read by language models everywhere. Winogrande (Sakaguchi et al. 2020) has a
blank, ``_``, in its sentence: each choice is put into it, and what stands behind the blank is what is scored, the same
words for all of them (Trinh and Le 2018). Takes texts, gives texts; knows no tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_JOINED = {"cause": "because", "effect": "therefore"}
_PREMISE, _ASKED, _CHOICES = "premise", "question", ("choice1", "choice2")
_ENDS = ".!?"
_BLANK = re.compile(r"(?<!\w)_(?!\w)")
_COUNTED_FROM_1 = (("option1", "option2"), "answer")


def is_of_causes(rows: Sequence[Mapping[str, Any]]) -> bool:
    """COPA's rows: a premise, two choices, and of which kind these are."""
    return bool(rows) and all(
        isinstance(row.get(_PREMISE), str)
        and row.get(_ASKED) in tuple(_JOINED)  # whatever a row asks: a list has no hash
        and all(name in row for name in _CHOICES)
        for row in rows
    )


def cause_or_effect(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with its premise as the question, and choices that go on with the sentence."""
    premise = str(row[_PREMISE]).strip().rstrip(_ENDS)
    said = {name: row[name][:1].lower() + row[name][1:] for name in _CHOICES if isinstance(row[name], str)}
    return {**row, _ASKED: f"{premise} {_JOINED[row[_ASKED]]}", **said}


def names_of(columns: Sequence[str], *, label: str | None) -> list[str]:
    """What Winogrande's ``answer`` calls its options, which other collections count from 0; nothing for them."""
    return ["1", "2"] if (tuple(columns), label) == _COUNTED_FROM_1 else []


def around_blank(text: str) -> tuple[str, str] | None:
    """What stands before and behind the one blank of a text; ``None`` without one, or with nothing to score behind."""
    found = _BLANK.findall(text)
    if len(found) != 1:
        return None
    before, after = _BLANK.split(text)
    return (before, after) if any(c.isalnum() for c in after) else None
