"""A prompt as a conversation: the checkpoint's own chat template, in the sandbox that transformers uses for it.

Takes the tokenizer's files, gives a text with its special tokens written out. Needs jinja2, and no transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from hasten.records import InputError, MissingDependency

SETTINGS = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
_SPECIALS = ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token")
_REMEDY = "leave --chat out, or save a tokenizer with a chat template into the folder"


class ChatTemplate:
    """What a tokenizer's files say of conversations. Raises InputError where they say nothing."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        settings = _settings(files)
        found: Any = files[TEMPLATE].decode("utf-8") if TEMPLATE in files else settings.get("chat_template")
        if isinstance(found, list):  # several by name
            found = {str(one.get("name")): one.get("template") for one in found}.get("default")
        if not isinstance(found, str):
            raise InputError("the tokenizer has no chat template", expected="one with --chat", remedy=_REMEDY)
        self._template = _compiled(found)
        self._specials = {name: _token(settings.get(name)) for name in _SPECIALS}

    def render(self, text: str) -> str:
        """What the model is given when a user says ``text``, up to where its answer begins. Raises InputError."""
        from jinja2 import TemplateError

        messages = [{"role": "user", "content": text}]
        try:
            return str(self._template.render(messages=messages, add_generation_prompt=True, **self._specials))
        except TemplateError as error:
            raise _broken(error) from error


def _settings(files: Mapping[str, bytes]) -> dict[str, Any]:
    try:
        found = json.loads(files.get(SETTINGS, b"{}"))
    except ValueError as error:
        raise InputError(f"{SETTINGS}: {error}", expected="valid JSON", remedy="restore the file") from error
    return found if isinstance(found, dict) else {}


def _token(value: Any) -> str:
    """Tokens are saved as texts, or with how they are split."""
    return str(value.get("content", "") if isinstance(value, Mapping) else value or "")


def _compiled(template: str) -> Any:
    try:
        from jinja2 import TemplateError
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise MissingDependency("jinja2", extra="generation") from error

    def refuse(message: str) -> None:
        raise TemplateError(message)

    sandbox = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    sandbox.filters["tojson"] = lambda value, **how: json.dumps(value, ensure_ascii=False, **how)
    sandbox.globals["raise_exception"] = refuse
    sandbox.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return sandbox.from_string(template)
    except TemplateError as error:
        raise _broken(error) from error


def _broken(error: Exception) -> InputError:
    return InputError(
        f"the chat template does not work ({str(error)[:120]})", expected="one that takes a user's message",
        remedy=_REMEDY,
    )  # fmt: skip
