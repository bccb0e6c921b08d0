"""Which recipes are worth a trial, and narrowing them by name.

Takes the configs that runtimes offer for this host, gives recipes in the order they
are tried. Knows configs only as data.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hasten.records import Config, InputError, Recipe

Settings = Mapping[str, Any]

# What a user may name with --techniques -> does a runtime config use it?
TECHNIQUES: Mapping[str, Callable[[Settings], bool]] = {
    "fp32": lambda c: c["precision"] == "fp32" and not c.get("kv_cache"),
    "bf16": lambda c: c["precision"] == "bf16",
    "int8": lambda c: str(c["precision"]).startswith("int8"),
    "int8-dynamic": lambda c: c["precision"] == "int8-dynamic",
    "int8-static": lambda c: c["precision"] == "int8-static" or (c["kind"], c["precision"]) == ("openvino", "int8"),
    "int8-cache": lambda c: c.get("kv_cache") == "int8",
    "int5": lambda c: c["precision"] == "int5",
    "int4": lambda c: str(c["precision"]).startswith("int4"),
    "smoothquant": lambda c: c["precision"] == "int8" and c.get("smooth_quant_alpha", -1.0) >= 0,
    "compile": lambda c: bool(c.get("compile")),
    "sdpa": lambda c: c.get("attention") == "sdpa",
    "fusion": lambda c: bool(c.get("fusion")),
}


def is_runtime_technique(name: str) -> bool:
    """Does the name narrow runtime configs (the names of passes do not)?"""
    return name in TECHNIQUES


def recipes(
    configs: Sequence[Config],
    *,
    runtimes: Sequence[str] | None = None,
    techniques: Sequence[str] | None = None,
    known_runtimes: Sequence[str] = (),
    known_passes: Sequence[str] = (),
) -> tuple[Recipe, ...]:
    """One recipe per config that the user's narrowing leaves.

    Raises InputError for a name that is not known (with the nearest), or when nothing is left.
    """
    check_known("runtime", runtimes, known_runtimes or sorted({c.kind for c in configs}))
    check_known("technique", techniques, [*TECHNIQUES, *known_passes])
    made = [Recipe(passes=(), runtime=c) for c in configs if runtimes is None or c.kind in runtimes]
    narrowing = [t for t in techniques or () if is_runtime_technique(t)]
    if narrowing:
        made = [r for r in made if any(TECHNIQUES[t](r.to_dict()["runtime"]) for t in narrowing)]
    if not made:
        of, using = ", ".join(runtimes or ["all"]), ", ".join(techniques or ["all"])
        raise InputError(
            f"runtimes {of} with techniques {using} leave no candidate",
            expected="at least one recipe to try",
            remedy="widen --runtimes or --techniques; 'hasten doctor' shows what is available here",
        )
    return tuple(made)


def check_known(what: str, names: Sequence[str] | None, known: Sequence[str]) -> None:
    """Raise InputError for a name that is not ``known``, with the nearest that is, and for a list of none."""
    if names is not None and not names:
        raise InputError(
            f"--{what}s without a name", expected=f"some of {', '.join(known)}",
            remedy="leave the flag out to have all of them",
        )  # fmt: skip
    for name in names or ():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise InputError(
                f"unknown {what} {name!r}",
                expected=f"some of {', '.join(known)}",
                remedy=f"did you mean {near[0]}?" if near else f"correct --{what}s",
            )
