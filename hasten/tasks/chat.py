"""A prompt as a conversation: the checkpoint's own chat template, in the sandbox that transformers uses for it.

Takes the tokenizer's files, gives a text with its special tokens written out. Needs jinja2, and no transformers. A
template may ask for the day; a bundle keeps the one that it was measured on, so that its prompts stay the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from hasten.records import InputError, MissingDependency

SETTINGS = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
DAY = "chat_day.txt"
_SPECIALS = ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token")
_REMEDY = "leave --chat out, or save a tokenizer with a chat template into the folder"
_OLDEST_JINJA = (3, 1, 6)  # older sandboxes have known ways out
_MARK = "ANSWER"


class ChatTemplate:
    """What a tokenizer's files say of conversations. Raises InputError where they say nothing."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        settings = _settings(files)
        found: Any = files[TEMPLATE].decode("utf-8") if TEMPLATE in files else settings.get("chat_template")
        if isinstance(found, list):  # several by name
            found = {str(one.get("name")): one.get("template") for one in found}.get("default")
        if not isinstance(found, str):
            raise InputError("the tokenizer has no chat template", expected="one with --chat", remedy=_REMEDY)
        self._template = _compiled(found, _day(files))
        self._specials = {name: _token(settings.get(name)) for name in _SPECIALS}

    def render(self, text: str) -> str:
        """What the model is given when a user says ``text``, up to where its answer begins. Raises InputError."""
        return self._rendered([{"role": "user", "content": text}], begun=True)

    def closing(self) -> str:
        """What the template writes behind a model's answer; nothing where it drops or changes answers."""
        said = [{"role": "user", "content": "QUESTION"}, {"role": "assistant", "content": _MARK}]
        before, there, behind = self._rendered(said, begun=False).rpartition(_MARK)
        del before
        return behind if there else ""

    def _rendered(self, messages: Sequence[Mapping[str, str]], *, begun: bool) -> str:
        given = {"messages": messages, "add_generation_prompt": begun, "tools": None, "documents": None}
        try:
            return str(self._template.render(**given, **self._specials))
        except Exception as error:  # a template is code: it may fail in any way
            raise _broken(error) from error


def with_day(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files, and today's date beside a template that asks for it."""
    template = files.get(TEMPLATE, b"") + files.get(SETTINGS, b"")
    if b"strftime_now" not in template or DAY in files:
        return dict(files)
    return {**files, DAY: datetime.now(UTC).date().isoformat().encode()}


def _day(files: Mapping[str, bytes]) -> datetime:
    """The day that is kept, else now. Raises InputError for what is no date."""
    if DAY not in files:
        return datetime.now()
    try:
        return datetime.fromisoformat(files[DAY].decode("ascii").strip())
    except ValueError as error:
        raise InputError(f"{DAY}: {error}", expected="a date such as 2026-01-31", remedy="restore the file") from error


def _settings(files: Mapping[str, bytes]) -> dict[str, Any]:
    try:
        found = json.loads(files.get(SETTINGS, b"{}"))
    except ValueError as error:
        raise InputError(f"{SETTINGS}: {error}", expected="valid JSON", remedy="restore the file") from error
    return found if isinstance(found, dict) else {}


def _token(value: Any) -> str:
    """Tokens are saved as texts, or with how they are split."""
    return str(value.get("content", "") if isinstance(value, Mapping) else value or "")


def _compiled(template: str, now: datetime) -> Any:
    try:
        from hasten.tasks.chat_sandbox import compiled
    except ImportError as error:
        raise MissingDependency("jinja2", extra="generation") from error
    if tuple(int(part) for part in version("jinja2").split(".")[:3] if part.isdigit()) < _OLDEST_JINJA:
        raise MissingDependency("jinja2 3.1.6 or newer", extra="generation")
    try:
        return compiled(template, now=now)
    except Exception as error:
        raise _broken(error) from error


def _broken(error: Exception) -> InputError:
    return InputError(
        f"the chat template does not work ({str(error)[:120]})", expected="one that takes a user's message",
        remedy=_REMEDY,
    )  # fmt: skip
