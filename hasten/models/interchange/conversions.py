"""Checkpoints of other forms, converted once and kept: the same file is not unpacked again by every process.

Takes the source's files and what converts them, gives a folder with an ordinary checkpoint in the user's cache. A
source is the same as before while its path, size and times are. Two processes that ask at once convert it once. When
all conversions together are larger than a bound, those that were used longest ago go first.

Knows nothing of what is converted.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from hasten.records import InputError

# Raised when the same source would be converted otherwise.
_FORM = 1
_MOST_BYTES = 20 * 10**9
# What was used within it may be in use.
_FRESH_S = 3600.0
_STAGING = ".making-"


def converted(sources: Sequence[Path], *, make: Callable[[Path], None]) -> Path:
    """The folder that ``make`` filled from ``sources``: now, or earlier. Raises InputError where it cannot be kept,
    and whatever ``make`` raises, with nothing kept."""
    from filelock import FileLock

    root = conversions_folder()
    folder = root / _identity(sources)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{folder.name}.lock"):
            if not folder.is_dir():
                _make_room(root)
                _filled(root, folder, make)
            os.utime(folder)  # when it was used
    except OSError as error:
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
    """The whole folder or none."""
    staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=root))
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


def _make_room(root: Path) -> None:
    """Delete what was used longest ago while all together is larger than the bound, and what a killed process left."""
    now = time.time()
    kept = [path for path in root.iterdir() if path.is_dir() and now - path.stat().st_mtime > _FRESH_S]
    total = sum(_bytes(path) for path in root.iterdir() if path.is_dir())
    for path in sorted(kept, key=lambda path: (not path.name.startswith(_STAGING), path.stat().st_mtime)):
        if total <= _MOST_BYTES and not path.name.startswith(_STAGING):
            return
        total -= _bytes(path)
        shutil.rmtree(path, ignore_errors=True)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
