"""Disks that run full: what a run needs of one, and an error that says so, whatever a library made of it.

Takes a folder and a piece of work that writes, gives DiskFull where a write found no room. A candidate is not to blame
for that: it is never rejected for it.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

from hasten.errors import DiskFull, InputError

P = ParamSpec("P")
T = TypeVar("T")

AGAIN = "free some space there, then give the same command again: it goes on from what is done"
# Every candidate is written once, the bundle twice while it is swapped, the shared exports once. Shapes that are
# trained stay until the end, and a training in progress holds its weights twice with both moments.
_COPIES, _TRAINING_COPIES = 6, 8
_CODES = (errno.ENOSPC, errno.EDQUOT)
# Libraries that are not written in Python keep the words and lose the number.
_WORDS = ("No space left on device", "Disk quota exceeded", "os error 28)", "os error 122)")
# Some say nothing of it at all: a failure where so little is free is the disk's. A C++ stream says that it failed, and
# its half of a file, often gigabytes, is deleted before anybody looks.
_NOTHING_BYTES, _STREAM, _LITTLE_BYTES = 1 << 20, "iostream error", 8 << 30


def needed_bytes(*, weights_bytes: int, trains: bool) -> int:
    """What a run writes at most at a time."""
    return (_COPIES + (_TRAINING_COPIES if trains else 0)) * weights_bytes


@contextmanager
def watched_disk(folder: Path, *, remedy: str = AGAIN, needed: int = 0) -> Iterator[None]:
    """Within, which writes into ``folder`` and the temporary folder, a write that found no room is DiskFull.

    ``needed`` are the bytes that all of it takes in the end, with what lies in ``folder`` already, where that is known.
    """
    try:
        yield
    except Exception as error:
        full = isinstance(error, DiskFull)
        if not full and (isinstance(error, InputError) or not _is_of_the_disk(error, folder)):
            raise  # an InputError has said already which disk, and what to do
        missing = needed - size_bytes(folder) if needed else 0
        room = f"about {missing / 1e6:,.0f} MB for the rest" if missing > 0 else "room for what was being written"
        got = error.got if isinstance(error, DiskFull) else _where(error, folder)
        raise DiskFull(got, expected=room, remedy=remedy) from error


def on_watched_disk(job: Callable[P, T]) -> Callable[P, T]:
    """The job, on the watched disk of its keyword argument ``folder``."""

    @wraps(job)
    def watched(*args: P.args, **kwargs: P.kwargs) -> T:
        with watched_disk(cast(Path, kwargs["folder"])):
            return job(*args, **kwargs)

    return watched


def found_no_room(error: BaseException) -> bool:
    """Is it, or what it came from, a write on a full disk?"""
    return any(
        (isinstance(e, OSError) and e.errno in _CODES) or any(words in str(e) for words in _WORDS)
        for e in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def size_bytes(folder: Path) -> int:
    """What the files in a folder hold."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # somebody tidies meanwhile
            total += path.lstat().st_size if path.is_file() else 0
    return total


def _is_of_the_disk(error: Exception, folder: Path) -> bool:
    """Does the error say so; or, where neither the system nor a check of ours says what is wrong, does the disk?"""
    if found_no_room(error):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return False
    enough = _LITTLE_BYTES if any(_STREAM in str(e) for e in _chain(error)) else _NOTHING_BYTES
    return min(_free_bytes(place) for place in _places(folder)) < enough


def _where(error: Exception, folder: Path) -> str:
    """The disk that is full: the one that the system named, or the one with the least room."""
    files = [e.filename for e in _chain(error) if isinstance(e, OSError) and e.filename]
    places = [Path(str(files[0])).parent] if files else _places(folder)
    place = min((_standing(p) for p in places), key=_free_bytes)
    said = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    return f"the disk is full: {_free_bytes(place) / 1e6:,.0f} MB free where {place} is ({said})"


def _places(folder: Path) -> list[Path]:
    """Where is written."""
    return [folder, Path(tempfile.gettempdir())]


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(_standing(folder)).free


def _standing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(p for p in (folder, *folder.absolute().parents) if p.exists())
