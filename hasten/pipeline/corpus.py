"""The texts that a vocabulary has to hold: those of the user's files, and what a chat template makes of them.

Takes files (plain text, tables with a column of texts, prompts with completions, conversations) and a tokenizer, gives
texts, conversations and the ids of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hasten.records import Columns, InputError
from hasten.tasks.rows import read_rows
from hasten.tasks.spoken_rows import Spoken, Talk, spoken_in
from hasten.tasks.tables import read_table
from hasten.tasks.text_files import is_text, read_text

# Whatever a template writes around one message, an answer and a second message.
_ANY: Talk = [
    {"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello"}, {"role": "user", "content": "yes"},
]  # fmt: skip


def read_corpus(sources: Sequence[str | Path], *, columns: Columns) -> Spoken:
    """All texts of these files, each once: second texts of pairs too, completions, and whatever is said in
    conversations. Where ``columns`` name a text, that column is read and nothing beside it.

    Raises InputError without any text.
    """
    texts: dict[str, None] = {}
    talks: list[Talk] = []
    for source in sources:
        spoken = None if is_text(source) or columns.text is not None else spoken_in(read_table(source))
        if spoken is not None:
            texts |= dict.fromkeys(spoken.texts)
            talks += spoken.talks
            continue
        rows = read_text(source) if is_text(source) else read_rows(source, columns=columns, labels_wanted=False)
        texts |= dict.fromkeys((*rows.texts, *(rows.pairs or ())))
    found = [text.encode("utf-8", "replace").decode("utf-8") for text in texts if text.strip()]
    if not found:
        raise InputError(
            f"no text in {', '.join(map(str, sources)) or 'no file'}", expected="the texts that the model will see",
            remedy="give --corpus with a text file, or a table with a column of texts",
        )  # fmt: skip
    return Spoken(found, talks)


def template_ids(tokenizer: Any, talks: Sequence[Talk]) -> tuple[set[int], tuple[str, ...]]:
    """The ids of what the chat template makes of ``talks`` and of any others, and a note where it could not be filled
    in."""
    if not getattr(tokenizer, "chat_template", None):
        return set(), ()
    from jinja2 import TemplateError

    found: set[int] = set()
    refused: list[str] = []
    for talk in [*(_ANY[:count] for count in (1, 2, 3)), *talks]:
        try:
            text = tokenizer.apply_chat_template(
                talk, tokenize=False, add_generation_prompt=talk[-1]["role"] != "assistant"
            )
        except (TemplateError, ValueError, TypeError, KeyError) as error:  # its own refusal has no one class
            refused.append(str(error))
            continue
        found |= set(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)
    if not refused:
        return found, ()
    what = f"the chat template refused {len(refused)} of {3 + len(talks)} conversations ({refused[0][:200]})"
    return found, (f"{what}; put filled-in prompts into the texts",)
