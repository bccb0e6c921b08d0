"""``verdict.json``: the answer for machines. Every key is documented in docs/verdict.md.

Takes a :class:`Verdict`, gives plain data, and back. Stable: within one
``schema_version`` keys are only added. Knows no trials and draws nothing.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hasten.atomic import write_atomically
from hasten.ledger import plain
from hasten.records import Figures, InputError, Verdict, read_as

SCHEMA_VERSION = 1
FILE_NAME = "verdict.json"
_SIDES = ("baseline", "tuned_baseline", "chosen")
_FIGURES = frozenset(f.name for f in dataclasses.fields(Figures))


def verdict_to_dict(verdict: Verdict) -> dict[str, Any]:
    """The verdict as JSON data; figures stand directly in ``baseline``, ``tuned_baseline`` and ``chosen``."""
    data: dict[str, Any] = plain(verdict)
    for side in _SIDES:
        if data[side] is not None:
            data[side] |= data[side].pop("figures")
    return {"schema_version": SCHEMA_VERSION, **data}


def verdict_from_dict(data: Mapping[str, Any]) -> Verdict:
    """The inverse of :func:`verdict_to_dict`; unknown keys of the same schema are passed over.

    Raises InputError for another schema version, or naming the first key that is missing or ill-typed.
    """
    from pydantic import ValidationError

    _check_version(data)
    rest = {key: value for key, value in data.items() if key != "schema_version"}
    for side in _SIDES:
        if isinstance(rest.get(side), Mapping):
            rest[side] = _nest_figures(rest[side])
    try:
        return read_as(Verdict, rest)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "figures")
        raise _unreadable(f"verdict key {where!r}: {first['msg']}") from error


def write_verdict(path: str | Path, verdict: Verdict) -> None:
    """Write ``verdict.json`` atomically."""
    write_atomically(path, json.dumps(verdict_to_dict(verdict), indent=2, allow_nan=False) + "\n")


def read_verdict(path: str | Path) -> Verdict:
    """Read ``verdict.json``. Raises InputError when it is absent, not JSON, or of another schema."""
    try:
        data = json.loads(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise InputError(
            f"no file {path}",
            expected=f"the {FILE_NAME} of a finished run",
            remedy="give the --out folder of a run; a stopped one continues with the same hasten optimize command",
        ) from error
    except (ValueError, OSError, RecursionError) as error:
        raise _unreadable(f"{path} is not readable JSON ({error})") from error
    if not isinstance(data, dict):
        raise _unreadable(f"{path} holds {type(data).__name__}, not an object")
    return verdict_from_dict(data)


def _nest_figures(side: Mapping[str, Any]) -> dict[str, Any]:
    figures = {key: value for key, value in side.items() if key in _FIGURES}
    return {**{key: value for key, value in side.items() if key not in _FIGURES}, "figures": figures}


def _check_version(data: Mapping[str, Any]) -> None:
    version = data.get("schema_version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise _unreadable(f"schema_version is {version!r}")
    if version > SCHEMA_VERSION:
        raise InputError(
            f"the verdict has schema_version {version}",
            expected=f"schema_version {SCHEMA_VERSION}",
            remedy="upgrade hasten: pip install --upgrade hasten",
        )


def _unreadable(what: str) -> InputError:
    return InputError(
        what,
        expected="a verdict as hasten wrote it",
        remedy="run the same hasten optimize command again: it rewrites the verdict",
    )
