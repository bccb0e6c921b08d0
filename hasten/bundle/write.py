"""Write a bundle in one atomic step.

Takes a folder of exported model files and what is known about them, gives
``out/bundle``. At every moment a reader finds either the old bundle or the new one
whole, never a mixture: the new one is made beside it and swapped in.
"""

from __future__ import annotations

import ctypes
import datetime
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from hasten import __version__
from hasten.bundle.golden import Golden, write_golden
from hasten.bundle.manifest import Manifest, write_manifest

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
STAGING_PREFIX = ".bundle-"


def write_bundle(
    target: Path,
    *,
    model_folder: Path,
    processor_files: Mapping[str, bytes],
    golden: Golden,
    manifest: Manifest,
) -> Manifest:
    """Write ``target`` (replacing a bundle that stands there) and return the manifest as written.

    Layout: ``manifest.json``, ``golden.json``, ``tokenizer/*``, ``model/*``.
    Raises OSError (disk full, read-only) with nothing half-written at ``target``.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=target.parent))
    try:
        shutil.copytree(model_folder, staging / "model", copy_function=shutil.copyfile)
        (staging / "tokenizer").mkdir()
        for name, content in processor_files.items():
            (staging / "tokenizer" / name).write_bytes(content)
        write_golden(staging, golden)
        written = write_manifest(staging, stamped(manifest))
        _sync_folder(staging)
        _open_permissions(staging)
        swap_in(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return written


def stamped(manifest: Manifest) -> Manifest:
    """With the time and version of writing."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return replace(manifest, created_utc=now, hasten_version=__version__)


def remove_staging(parent: Path) -> None:
    """Delete what a killed run left beside the bundle."""
    for path in parent.glob(STAGING_PREFIX + "*"):
        shutil.rmtree(path, ignore_errors=True)


def swap_in(staging: Path, target: Path) -> None:
    """Make ``target`` be what ``staging`` is; what stood at ``target`` is left at ``staging`` or deleted."""
    if not target.exists():
        staging.rename(target)
        return
    if not _exchange(staging, target):
        # No atomic exchange on this system: the gap between the two renames is all a reader can hit.
        old = staging.with_name(staging.name + "-old")
        target.rename(old)
        staging.rename(target)
        shutil.rmtree(old, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two paths atomically where the kernel can (Linux renameat2)."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    done = libc.renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE)
    return bool(done == 0)


def _open_permissions(folder: Path) -> None:
    """mkdtemp makes the folder private; a bundle is readable as the user's umask says."""
    umask = os.umask(0)
    os.umask(umask)
    folder.chmod(0o777 & ~umask)


def _sync_folder(folder: Path) -> None:
    """Flush every file, so that a power cut cannot leave a bundle with holes."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
