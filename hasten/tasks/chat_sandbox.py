"""Where a checkpoint's chat template runs: a sandbox, since templates are code of strangers.

Takes a template's text and a date, gives a compiled template. What templates are offered, and refused, is what
transformers offers and refuses: jinja2's immutable sandbox, loop controls, ``{% generation %}``, ``tojson``,
``raise_exception`` and ``strftime_now``; ``dict`` is no class, and namespaces take no names with a leading underscore.
Needs jinja2.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace


class _Generation(Extension):
    """``{% generation %}`` marks what the model said, for training; here its body is rendered, in its own scope."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it of instances)

    def parse(self, parser: Parser) -> nodes.Node:
        """jinja2 calls this at the tag."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Dict:
    """``dict(...)`` and ``dict.fromkeys(...)`` without the class, through which its insides could be reached."""

    def __call__(self, *given: Any, **named: Any) -> dict[Any, Any]:
        return dict(*given, **named)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        """As dict's own."""
        return dict.fromkeys(keys, value)


class _Named(Namespace):
    def __setitem__(self, name: str, value: Any) -> None:
        _check_public(name)
        super().__setitem__(name, value)


def compiled(template: str, *, now: datetime) -> Template:
    """``now`` is what ``strftime_now`` says. Raises jinja2's TemplateError."""
    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    sandbox.filters["tojson"] = lambda value, **how: json.dumps(value, **{"ensure_ascii": False, **how})
    sandbox.globals["raise_exception"] = _refuse
    sandbox.globals["strftime_now"] = now.strftime
    sandbox.globals["dict"] = _Dict()
    sandbox.globals["namespace"] = _namespace
    return sandbox.from_string(template)


def _namespace(*given: Any, **named: Any) -> Namespace:
    for name in dict(*given, **named):
        _check_public(name)
    return _Named(*given, **named)


def _check_public(name: Any) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace takes no name with a leading underscore: {name!r}")


def _refuse(message: str) -> None:
    raise TemplateError(message)
