"""Catalogues: TOML files of named entries, hasten's own beside the code and the user's over them."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hasten.records import InputError, read_as

T = TypeVar("T")
_LISTED = 30


def read_tables(path: Path) -> dict[str, Any]:
    """A TOML file's tables. Raises InputError when it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{path}: {error}", expected="a TOML file", remedy="correct it") from error


def read_catalogue(kind: type[T], own: Any, users: str | Path | None) -> dict[str, T]:
    """Entries by their name in lower case. Raises InputError that names file, entry and key."""
    found: dict[str, T] = {}
    for path in (Path(own), *([Path(users)] if users is not None else [])):
        for name, table in read_tables(path).items():
            found[name.lower()] = _entry(kind, name.lower(), table, path)
    return found


def _entry(kind: type[T], name: str, table: Any, path: Path) -> T:
    form = f"the form of hasten/plan/sizing/{kind.__name__.lower()} entries in hasten's own file: see docs/sizing.md"
    if not isinstance(table, dict):
        raise InputError(f"{path}: {name!r} is no table", expected=form, remedy="correct the entry")
    try:
        return read_as(kind, {**table, "name": name})
    except ValueError as error:
        raise InputError(f"{path}, {name}: {first_fault(error)}", expected=form, remedy="correct the entry") from error


def find_entry(name: str, names: Mapping[str, T], *, what: str, remedy: str) -> T:
    """The entry that is called so. Raises InputError with the nearest names."""
    wanted = name.strip().lower()
    if wanted in names:
        return names[wanted]
    near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.4)
    raise InputError(
        f"no {what} is called {name[:80]!r}", expected=f"one of {_some(names)}",
        remedy=f"did you mean {' or '.join(near)}?" if near else remedy,
    )  # fmt: skip


def _some(names: Mapping[str, Any]) -> str:
    """All, or the first few of many."""
    if len(names) <= _LISTED:
        return ", ".join(names)
    return f"{len(names)} names, such as {', '.join(list(names)[:_LISTED])}"


def first_fault(error: ValueError) -> str:
    """The first thing that pydantic complains about, with its place."""
    details: Sequence[Any] = getattr(error, "errors", list)()
    if not details:
        return str(error)
    where = ".".join(str(part) for part in details[0]["loc"])
    return f"{where}: {details[0]['msg']}" if where else str(details[0]["msg"])


def require(holds: bool, what: str) -> None:
    """Raise ValueError, which a catalogue's reader reports with file and entry."""
    if not holds:
        raise ValueError(what)
