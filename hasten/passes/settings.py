"""Settings of passes: each of the type that its field declares, wherever the config is made.

Takes a config in the making, gives its settings their declared types: 12 epochs are 12.0, a list is a tuple. A word
that a field does not know, 2.5 layers or a share that is not a number are refused by name. In which range a number has
to be is each config's own matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import cache
from typing import Any, get_type_hints

from pydantic import ValidationError

from hasten.records import Config, InputError, read_as

_LONGEST = 80  # characters of what was given


def as_declared(config: Config) -> None:
    """Give every setting of a frozen dataclass its declared type. Raises InputError naming pass, setting and value."""
    for name, declared in _declared(type(config)).items():
        given = getattr(config, name)
        try:
            found = read_as(declared, given)
        except ValidationError as error:
            raise _misfit(config, name, given, expected=_expected(error)) from error
        if not all(map(math.isfinite, _numbers(found))):
            raise _misfit(config, name, given, expected="a finite number")
        object.__setattr__(config, name, found)  # frozen, and not handed out yet


@cache
def _declared(kind: Any) -> Mapping[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _numbers(value: Any) -> Iterator[float]:
    for each in value if isinstance(value, tuple) else (value,):
        if isinstance(each, float):
            yield each


def _expected(error: ValidationError) -> str:
    first = error.errors()[0]
    if first["type"] == "tuple_type":
        return "a list or tuple"
    words = first["msg"].removeprefix("Input should be ")
    return words.partition(", got ")[0].partition(", unable ")[0]


def _misfit(config: Config, name: str, given: Any, *, expected: str) -> InputError:
    said = repr(given)
    said = said if len(said) <= _LONGEST else f"{said[:_LONGEST]}..."
    return InputError(
        f"{name}={said} for the pass {config.kind}", expected=expected, remedy=f"correct {name}, or leave it out"
    )
