"""Which files hold a checkpoint's weights: those that transformers would read, and no others.

Takes a folder, gives the paths of ``model.safetensors``, or of the parts that its index names. transformers joins the
folder and every name in the index, and unpickles a part that is called anything else than ``.safetensors``: so names
with a way out of the folder, and names of other endings, are refused before it sees them. Left-over parts of older
saves are not among the paths.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from hasten.records import InputError

ONE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PART = re.compile(r"[\w.-]+\.safetensors", re.ASCII)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files in the order of their names; empty without any. Raises InputError for an index that is not to be
    followed."""
    whole, index = folder / ONE_FILE, folder / INDEX
    if whole.is_file():  # transformers looks no further
        return (whole,)
    if not index.is_file():
        return ()
    names = _named(index)
    strange = next((name for name in names if not isinstance(name, str) or not _PART.fullmatch(name)), None)
    if not names or strange is not None:
        raise InputError(
            f"{index} names {str(strange)[:120]!r} as a file of weights" if names else f"{index} names no weights",
            expected="names of safetensors files in the same folder, such as model-00001-of-00002.safetensors",
            remedy="download the checkpoint again, from a source that you trust",
        )
    paths = tuple(folder / name for name in sorted(set(names)))
    absent = next((path for path in paths if not path.is_file()), None)
    if absent is not None:
        raise InputError(
            f"{absent} is not there, and {INDEX} names it", expected="every part of the weights",
            remedy="complete the download or save the model again",
        )  # fmt: skip
    return paths


def _named(index: Path) -> list[Any]:
    try:
        return list(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, OSError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{index} is no index of weights ({type(error).__name__}: {str(error)[:120]})",
            expected="JSON with a weight_map of names to files", remedy="restore the file",
        ) from error  # fmt: skip
