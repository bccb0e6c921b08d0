"""Fill a folder so that it holds everything or is not there.

Takes a path that is free or an empty folder. Knows nothing of what is written.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which becomes ``folder`` at the end. When anything is raised, nothing of it stays.

    It lies where ``folder`` will: a rename does not cross disks, and an empty folder may be one's root.
    """
    there = folder.is_dir()
    staging = (folder if there else folder.parent) / f".{folder.name or 'new'}-{secrets.token_hex(4)}"
    staging.mkdir(parents=True)
    moved: list[Path] = []
    try:
        yield staging
        if there:
            for path in sorted(staging.iterdir()):
                moved.append(path.rename(folder / path.name))
            staging.rmdir()
        else:
            staging.rename(folder)
    except BaseException:
        for path in [staging, *moved]:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        raise
