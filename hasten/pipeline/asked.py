"""One recipe that was asked for, in place of a search.

Takes a file, its content or a Recipe, gives a Recipe that can be built here. A file holds what ``Recipe.to_dict``
gives, as ``recipe`` in a verdict, a manifest or a row of trials.jsonl: passes and a runtime, each with its kind and
settings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hasten.passes import check_installed, check_order
from hasten.records import InputError, Recipe
from hasten.runtimes import get_runtime, read_recipe

_EXPECTED = '{"passes": [{"kind": "kprune", "keep": 0.6}], "runtime": {"kind": "onnxruntime"}}'


def read_asked(given: str | Path | Mapping[str, Any] | Recipe) -> Recipe:
    """The recipe of a JSON file, of its content, or as it is.

    Raises InputError for a file that is not there or no recipe, unknown kinds or settings, passes out of order, and a
    runtime that is not available here; MissingDependency for a pass whose library is not installed.
    """
    data: Any = given.to_dict() if isinstance(given, Recipe) else given
    where = "the recipe"
    if isinstance(data, (str, Path)):
        where, data = str(data), _content(Path(data))
    check_form(data, where=where)
    recipe = read_recipe(data)
    check_order(recipe.passes)
    check_installed([p.kind for p in recipe.passes])
    probe = get_runtime(recipe.runtime.kind).probe()
    if not probe.available:
        raise InputError(
            f"{where} is for {recipe.runtime.kind}: {probe.reason}", expected="an available runtime",
            remedy=str(probe.remedy),
        )  # fmt: skip
    return recipe


def _content(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"--recipe {path} cannot be read ({error.strerror})", expected="a JSON file with one recipe",
            remedy="check the path",
        ) from error  # fmt: skip
    except (ValueError, RecursionError) as error:
        raise _no_recipe(f"{path} is not JSON ({error})") from error


def check_form(data: Any, *, where: str) -> None:
    """Raise InputError when ``data`` is not an object with a list of passes and a runtime, each of a kind."""
    if not isinstance(data, Mapping) or set(data) != {"passes", "runtime"}:
        found = f"has {', '.join(map(str, data)) or 'nothing'}" if isinstance(data, Mapping) else "is no object"
        raise _no_recipe(f"{where} {found}")
    parts = [data["runtime"], *(data["passes"] if isinstance(data["passes"], (list, tuple)) else [None])]
    wrong = next((part for part in parts if not isinstance(part, Mapping) or "kind" not in part), parts)
    if wrong is not parts:
        raise _no_recipe(f"{where} has a part without a kind: {str(wrong)[:80]}")


def _no_recipe(got: str) -> InputError:
    return InputError(
        got, expected=f"passes and a runtime, such as {_EXPECTED}",
        remedy="take the recipe of a verdict.json, a manifest.json or a line of trials.jsonl as the example",
    )  # fmt: skip
