"""Write a file so that a reader finds the old one or the new one, whole.

Takes a path and text or bytes. Knows nothing of what they say.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hasten.errors import InputError


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Write bytes, or text as UTF-8, beside ``path``, flush them, and rename the new file over ``path``.

    Lone surrogates (a user's broken text) are written as ``?``. Raises OSError with ``path`` unchanged, and InputError
    for what is no file (a device would be replaced by one).
    """
    target = Path(path)
    if target.exists() and not target.is_file():
        raise InputError(f"{path} is no file", expected="a file, or a name for a new one", remedy="give another name")
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, staging = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content.encode("utf-8", "replace") if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(staging).chmod(0o666 & ~umask)  # mkstemp makes it private; a report is as open as any new file
        os.replace(staging, target)
    except BaseException:
        Path(staging).unlink(missing_ok=True)
        raise
