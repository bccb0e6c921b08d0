"""What a run was made from, by content: the same names may hold something else when it is gone on with.

Takes a request with its recipes, the checkpoint's facts and the data, gives hashes for the first row of the ledger, and
holds those of a resumed run against them. What changed would make trials that do not compare, and weights of something
else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hasten.models.inspect import inspect_checkpoint
from hasten.pipeline.jobs import CheckpointFacts
from hasten.pipeline.prepare import Prepared
from hasten.records import InputError, ModelRef, Recipe
from hasten.tasks import get_task

# Names of the hashes, and what they are of.
_WHAT = {
    "source_hash": "the checkpoint", "data_sha256": "the data", "extra_sha256": "the extra data",
    "teachers_sha256": "a teacher's checkpoint",
}  # fmt: skip


def sources_of(facts: CheckpointFacts, prepared: Prepared, *, teachers_sha256: str | None) -> dict[str, str | None]:
    """Hashes by name, ``None`` for what there is none of."""
    return {
        "source_hash": facts.source_hash,
        "data_sha256": prepared.rows.sha256,
        "extra_sha256": prepared.extra_sha256,
        "teachers_sha256": teachers_sha256,
    }


def hash_of_teachers(recipes: Sequence[Recipe], *, task: str) -> str | None:
    """Of what lies in the folders that recipes name as teachers; ``None`` where none does.

    Raises InputError for one that is no checkpoint of the ``task``: that is better said before anything is measured.
    """
    folders = [folder for recipe in recipes for config in recipe.passes for folder in getattr(config, "teachers", ())]
    if not folders:
        return None
    whole = hashlib.sha256()
    for folder in dict.fromkeys(folders):
        whole.update(inspect_checkpoint(ModelRef(folder), task=get_task(task)).source_hash().encode())
    return whole.hexdigest()


def check_unchanged(began: Mapping[str, Any], now: Mapping[str, str | None], *, out: Path) -> None:
    """Raise InputError when something is not what it was when the run in ``out`` began."""
    for name, what in _WHAT.items():
        if began.get(name) != now[name]:
            raise InputError(
                f"{what} changed since the run in {out} began",
                expected="the same content, to continue that run",
                remedy="start afresh with --overwrite, or give another --out",
            )
