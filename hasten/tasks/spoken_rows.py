"""All that is said in rows of prompts and completions, or of conversations: texts that a vocabulary has to hold.

Takes a table as trainings take it (``prompt``/``completion``, ``instruction``/``input``/``output``, ``messages`` or
``conversations``), gives its texts and its conversations, or ``None`` for a table of another kind. Knows no tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from hasten.tasks.tables import Table

# One of the first makes a table one of prompts, or of conversations; of the others all are read.
_PROMPTS = ("prompt", "instruction")
_BESIDE = (
    "system", "input", "context", "completion", "response", "output", "answer", "answers", "target", "reference",
    "references", "chosen", "rejected", "text",
)  # fmt: skip
_TALKS = ("messages", "conversations", "conversation")
_SAID = ("content", "value", "text")
_WHO = ("role", "from")
# ShareGPT's names for who speaks.
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant"}

Talk = list[dict[str, str]]


@dataclass(slots=True)
class Spoken:
    """``texts`` in their order; ``talks`` as chat templates take them, ``{"role", "content"}`` a message."""

    texts: list[str] = field(default_factory=list)
    talks: list[Talk] = field(default_factory=list)


def spoken_in(table: Table) -> Spoken | None:
    """What the rows say. A prompt and what follows it are also there as one text: where they meet, other tokens may."""
    plain = {name.strip().casefold(): name for name in table.names}
    first = next((plain[name] for name in (*_TALKS, *_PROMPTS) if name in plain), None)
    if first is None:
        return None
    beside = [plain[name] for name in _BESIDE if name in plain]
    found = Spoken()
    for row in table.rows:
        begun, *others = (_said(row.get(column)) for column in (first, *beside))
        found.texts += [text for said in (begun, *others) for text in said.texts]
        leads = [said.texts[0].strip() for said in (begun, *others) if said.texts]
        found.texts += [f"{one} {other}" for one, other in pairwise(filter(None, leads))]
        found.talks += _gone_on(begun.talks, [talk for said in others for talk in said.talks])
    return found


def _gone_on(begun: list[Talk], others: list[Talk]) -> list[Talk]:
    """Conversations with each of their answers, where these are in columns of their own."""
    return [[*start, *answer] for start in begun for answer in others] or [*begun, *others]


def _said(value: Any) -> Spoken:
    """The texts of a cell: one, a list of them, or a conversation, also as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(ValueError, RecursionError):  # else it is a text that begins with a bracket
            value = json.loads(value)
    parts: Sequence[Any] = value if isinstance(value, (list, tuple)) else [value]
    talk = [message for part in parts if (message := _message(part)) is not None]
    texts = [message["content"] for message in talk] + [part for part in parts if isinstance(part, str)]
    return Spoken(texts, [talk] if talk else [])


def _message(part: Any) -> dict[str, str] | None:
    """Of a message that consists of parts, those that are texts."""
    if not isinstance(part, Mapping):
        return None
    said = next((part[name] for name in _SAID if name in part), None)
    who = str(next((part[name] for name in _WHO if name in part), "user"))
    if isinstance(said, (list, tuple)):
        said = "\n".join(str(p["text"]) for p in said if isinstance(p, Mapping) and isinstance(p.get("text"), str))
    return {"role": _ROLES.get(who, who), "content": said} if isinstance(said, str) else None
