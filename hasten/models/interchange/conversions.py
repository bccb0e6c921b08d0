"""Checkpoints of other forms, converted once and kept: the same file is not unpacked again by every process.

Takes the source's files and what converts them, gives a folder with an ordinary checkpoint in the user's cache. A
source is the same as before while its path, size and times are. Two processes that ask at once convert it once. When
all conversions together are larger than a bound, those that were used longest ago go first; the newest, and what was
used within the last hour, stay whatever their size.

Locks: whoever makes or uses a folder holds the folder's own, whoever deletes holds the room's and, without waiting for
it, the folder's. A name stands for a whole folder or for none: what is deleted loses its name first.

Knows nothing of what is converted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from hasten.records import InputError

if TYPE_CHECKING:
    from filelock import BaseFileLock

# Raised when the same source would be converted otherwise.
_FORM = 2
_MOST_BYTES = 20 * 10**9
# What was used within it may be in use.
_FRESH_S = 3600.0
_STAGING, _GOING = ".making-", ".going-"


def converted(sources: Sequence[Path], *, make: Callable[[Path], None]) -> Path:
    """The folder that ``make`` filled from ``sources``: now, or earlier. Raises InputError where it cannot be kept,
    and whatever ``make`` raises, with nothing kept."""
    from safetensors import SafetensorError

    root = conversions_folder()
    folder = root / _identity(sources)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _lock(root, folder.name):
            made = not folder.is_dir()
            if made:
                _make_room(root, spare=folder.name)
                _filled(root, folder, make)
            os.utime(folder)  # when it was used
            if made:
                _make_room(root, spare=folder.name)
    except (OSError, SafetensorError) as error:  # the second is how safetensors says that the disk is full
        raise InputError(
            f"{sources[0]} has to be converted once, and that could not be kept in {root}: {error}",
            expected="a cache folder that may be written, with space for the weights in fp32",
            remedy="free some space, or set XDG_CACHE_HOME to a folder that has it",
        ) from error
    return folder


def conversions_folder() -> Path:
    from platformdirs import user_cache_path

    return Path(user_cache_path("hasten")) / "converted"


def _filled(root: Path, folder: Path, make: Callable[[Path], None]) -> None:
    """The whole folder or none. Its lock is held: whoever was making it before was killed."""
    for left in root.glob(f"{_STAGING}{folder.name}-*"):
        shutil.rmtree(left, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=f"{_STAGING}{folder.name}-", dir=root))
    try:
        make(staging)
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _identity(sources: Sequence[Path]) -> str:
    facts = []
    for path in sorted(path.resolve() for path in sources):
        found = path.stat()
        facts.append((str(path), found.st_size, found.st_mtime_ns, found.st_ctime_ns))
    text = json.dumps([_FORM, version("transformers"), facts])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _lock(root: Path, name: str, *, timeout_s: float = -1) -> BaseFileLock:
    """The lock of a folder, or of the ``room``; -1: wait for it."""
    from filelock import FileLock

    return FileLock(root / f".{name}.lock", timeout=timeout_s)


def _make_room(root: Path, *, spare: str) -> None:
    """Delete what was used longest ago while all together is larger than the bound, and what killed processes left;
    never ``spare``, whose lock is the caller's."""
    with _lock(root, "room"):
        for left in root.glob(f"{_GOING}*"):  # whoever was deleting it had this lock, and was killed
            shutil.rmtree(left, ignore_errors=True)
        for left in root.glob(f"{_STAGING}*"):
            name = left.name.removeprefix(_STAGING).rpartition("-")[0]
            if name != spare:
                _delete(root, left, lock=name, before=float("inf"))
        used = {path: _used(path) for path in root.iterdir() if path.is_dir()}
        sizes = {path: _bytes(path) for path in used}
        total, stale = sum(sizes.values()), time.time() - _FRESH_S
        for path in sorted(used, key=lambda path: used[path]):
            if total <= _MOST_BYTES:
                return
            # Staging folders that are still here are being written, and what is going has been dealt with.
            evictable = path.name != spare and not path.name.startswith((_STAGING, _GOING))
            if evictable and _delete(root, path, lock=path.name, before=stale):
                total -= sizes[path]


def _delete(root: Path, folder: Path, *, lock: str, before: float) -> bool:
    """Delete a folder that nobody holds and nobody has used since ``before``; say whether it was."""
    from filelock import Timeout

    try:
        with _lock(root, lock, timeout_s=0):
            if _used(folder) > before:  # used since it was looked at
                return False
            going = Path(tempfile.mkdtemp(prefix=_GOING, dir=root))
            with contextlib.suppress(FileNotFoundError):
                folder.rename(going / folder.name)
    except Timeout:
        return False
    shutil.rmtree(going, ignore_errors=True)
    return True


def _used(folder: Path) -> float:
    """Seconds since the epoch; 0 for a folder that is gone."""
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _bytes(folder: Path) -> int:
    """Of what is there: files may come and go."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += (Path(place) / name).stat().st_size
    return total
