"""The output folder of one run: locked, recovered after a kill, never half-written.

Takes a :class:`Request`, gives paths and the open ledger. Layout: ``bundle/``,
``report.html``, ``trials.jsonl``, ``verdict.json``, and ``work/`` while it runs.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hasten.bundle.write import remove_staging
from hasten.errors import DiskFull
from hasten.ledger import FILE_NAME, Ledger
from hasten.pipeline.disk import needed_bytes, size_bytes, watched_disk
from hasten.pipeline.request import Request
from hasten.records import InputError

_OURS = {"bundle", "closest-miss", "report.html", FILE_NAME, "verdict.json", "work", ".lock"}
PASSES, _EXPORTS = "passes", "cache"


@dataclass(frozen=True, slots=True)
class Workspace:
    """Paths of a run. ``trained`` are the ids of the passes whose weights stay when it has ended."""

    out: Path
    ledger: Ledger
    trained: set[str] = field(default_factory=set)

    @property
    def work(self) -> Path:
        return self.out / "work"

    @property
    def log(self) -> Path:
        return self.work / "workers.log"

    def folder(self, stage: str, recipe_id: str) -> Path:
        """A fresh folder for one candidate's files."""
        path = self.work / stage / recipe_id
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def keep_all_passes(self) -> None:
        """An interrupted run goes on from everything that passes made, half-trained weights too."""
        self.trained.update(_of(folder) for folder in (self.work / PASSES).glob("*"))


@contextmanager
def open_workspace(request: Request, *, header: Mapping[str, Any], needed: int = 0) -> Iterator[Workspace]:
    """Lock the folder, clear what a killed run left, open the ledger to resume or start.

    Raises InputError when the folder holds something else, another run is in it, or it cannot be written; DiskFull when
    its disk has no room, with the ledger whole and what passes made still there. ``needed`` bytes are said then.
    """
    from filelock import FileLock, Timeout

    out = request.out
    check_folder(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".lock", timeout=0)
        with watched_disk(out, needed=needed), lock:
            if request.overwrite:
                _clear(out)
            remove_staging(out)
            if not (out / FILE_NAME).is_file():  # without a ledger nobody knows of what run these weights are
                shutil.rmtree(out / "work", ignore_errors=True)
            shutil.rmtree(out / "work" / _EXPORTS, ignore_errors=True)  # the last one may be half-written
            (out / "work").mkdir(exist_ok=True)
            with Ledger.open(out / FILE_NAME, run_key=request.run_key, header=header) as ledger:
                space = Workspace(out=out, ledger=ledger)
                yield space
            if not request.keep_work:
                _tidy(space)
    except Timeout as error:
        raise InputError(
            f"another run is using {out}",
            expected="one run per output folder",
            remedy="wait for it to end, or give another --out",
        ) from error
    except PermissionError as error:
        raise InputError(f"{error}", expected="a folder that may be written", remedy="give another --out") from error
    (out / ".lock").unlink(missing_ok=True)


def check_disk(out: Path, *, weights_bytes: int, trains: bool) -> None:
    """Raise DiskFull when the disk cannot hold the candidates that a run writes, less what an earlier sitting wrote."""
    folder = next(p for p in (out, *out.resolve().parents) if p.exists())
    needed = needed_bytes(weights_bytes=weights_bytes, trains=trains) - size_bytes(out)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskFull(
            f"{free / 1e6:,.0f} MB free where {out} is",
            expected=f"about {needed / 1e6:,.0f} MB for the candidates and the bundle",
            remedy="free some space, or give an --out on a larger disk",
        )


def check_folder(out: Path) -> None:
    """Raise InputError when ``out`` is a file or holds what is not a run's."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file", expected="a folder", remedy="give another --out")
    if not out.is_dir():
        return
    strange = sorted(p.name for p in out.iterdir() if p.name not in _OURS and not p.name.startswith(".bundle-"))
    if strange or (any(out.iterdir()) and not (out / FILE_NAME).is_file() and (out / "bundle").exists()):
        raise InputError(
            f"{out} holds something else ({', '.join(strange[:3]) or 'a bundle without its trials'})",
            expected="a new or empty folder, or that of an earlier hasten run",
            remedy="give another --out",
        )


def _tidy(space: Workspace) -> None:
    """Leave nothing in ``work`` but weights that took minutes to train: with more time the run goes on from them."""
    trained = space.work / PASSES
    for folder in (*space.work.glob("*"), *trained.glob("*")):
        if folder != trained and not (folder.parent == trained and _of(folder) in space.trained):
            shutil.rmtree(folder, ignore_errors=True) if folder.is_dir() else folder.unlink(missing_ok=True)
    for empty in (trained, space.work):
        with suppress(OSError):  # of what holds something
            empty.rmdir()


def _of(folder: Path) -> str:
    """The id of the passes that a folder of kept weights is of; what they were given follows it."""
    return folder.name.partition("-")[0]


def _clear(out: Path) -> None:
    for name in _OURS - {".lock"}:
        path = out / name
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
