"""What passes made, kept on disk: whole, of this checkpoint and of these rows, or not at all.

Takes a name for some passes, gives the folder with what they made, if it is there and as it was written. Everything in
it can be made again, so what does not check is thrown away. Knows no pass and no model.

Layout: ``NAME-OF/model/`` (weights), ``NAME-OF/done.json`` (hashes and notes, written last), and ``NAME-OF/state/``
while a training is not done.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hasten.atomic import write_atomically
from hasten.bundle.manifest import hash_folder
from hasten.pipeline.material import Material

# In what is said of a result, or of a training's state, that is not as it was written.
DAMAGED = "is damaged"
_DONE, _MODEL, _STATE = "done.json", "model", "state"


@dataclass(frozen=True, slots=True)
class Kept:
    """Weights that passes made, how many of the passes, and what these said of it."""

    count: int
    folder: Path
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PassCache:
    """``of`` stands for all that passes are given (see :func:`made_from`): of another, nothing is found."""

    root: Path
    of: str

    def state(self, name: str) -> Path:
        """Where a training keeps what it needs to go on."""
        return self._folder(name) / _STATE

    def newest(self, names: Sequence[str], *, say: Callable[[str], None]) -> Kept | None:
        """The longest prefix that is kept, of ``names`` from the shortest to the longest one. Damaged ones are deleted,
        and ``say`` hears of it."""
        for count in range(len(names), 0, -1):
            folder = self._folder(names[count - 1])
            if not (folder / _DONE).is_file():
                continue
            done, damage = _checked(folder)
            if damage is None:
                return Kept(count, folder / _MODEL, tuple(done["notes"]))
            say(f"what the first {count} passes had made {DAMAGED} ({damage}): they are run again")
            shutil.rmtree(folder)
        return None

    def keep(self, name: str, *, write: Callable[[Path], None], notes: Sequence[str], about: Any) -> None:
        """``write`` the weights into a folder, then the mark that they are whole. ``about``: for whoever looks at it.

        Raises whatever ``write`` does, with no part of it left; a training's state stays until all is written.
        """
        folder = self._folder(name)
        (folder / _DONE).unlink(missing_ok=True)
        shutil.rmtree(folder / _MODEL, ignore_errors=True)
        try:
            write(folder / _MODEL)
            files = {name: asdict(entry) for name, entry in hash_folder(folder / _MODEL).items()}
            write_atomically(folder / _DONE, json.dumps({"passes": about, "notes": list(notes), "files": files}))
        except BaseException:
            shutil.rmtree(folder / _MODEL, ignore_errors=True)
            raise
        shutil.rmtree(folder / _STATE, ignore_errors=True)  # only now: until here a killed run trains on from it

    def _folder(self, name: str) -> Path:
        return self.root / f"{name}-{self.of}"


def _checked(folder: Path) -> tuple[dict[str, Any], str | None]:
    """What ``done.json`` says, and what is wrong with it or with the weights."""
    try:
        done = json.loads((folder / _DONE).read_text(encoding="utf-8"))
        wanted = {str(name): (entry["bytes"], entry["sha256"]) for name, entry in done["files"].items()}
        notes_are_text = all(isinstance(note, str) for note in done["notes"])
        found = {name: (entry.bytes, entry.sha256) for name, entry in hash_folder(folder / _MODEL).items()}
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        return {}, f"{_DONE} cannot be read: {type(error).__name__}"
    if not wanted or not notes_are_text:
        return {}, f"{_DONE} is not as it was written"
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    return done, f"{wrong[0]} is not as it was written" if wrong else None


def made_from(material: Material, *, source_hash: str, task: str, labels: Sequence[str]) -> str:
    """Twelve hex digits that stand for a checkpoint and for all that passes may see of the data."""
    whole = hashlib.sha256(repr((source_hash, task, tuple(labels), material.seed, material.input_names)).encode())
    whole.update(material.tokenizer_json.encode())
    for number, rows in enumerate((material.rows, material.extra, [e.arrays for e in material.scored.examples])):
        for row in rows:
            _add(whole, row, part=number)
    for number, target in enumerate(material.targets or ()):
        _add(whole, {"target": target}, part=number)
    scored = material.scored_rows
    whole.update(repr((scored.texts, scored.pairs, scored.labels, len(material.scored.examples))).encode())
    return whole.hexdigest()[:12]


def _add(whole: Any, arrays: Mapping[str, Any], *, part: int) -> None:
    """Names, shapes and contents, so that no two different rows are told apart by nothing."""
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        whole.update(f"{part} {name} {array.dtype} {array.shape}".encode())
        whole.update(array.tobytes())
