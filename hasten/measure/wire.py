"""The parent's end of a worker's pipes: whole frames out, a log to append to, a signal's name.

Takes streams and bytes; knows nothing of what the frames say.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import IO

from hasten.measure.worker_main import HEADER_BYTES


def send_frame(pipe: IO[bytes], payload: bytes) -> None:
    """Writes one frame whole: a raw pipe may take only a part at a time."""
    for part in (len(payload).to_bytes(HEADER_BYTES, "big"), payload):
        view = memoryview(part)
        while view:
            view = view[os.write(pipe.fileno(), view) :]


def open_log(log: Path) -> IO[bytes]:
    """Opened at its end, to append and to read back."""
    log.parent.mkdir(parents=True, exist_ok=True)
    stream = open(log, "a+b")  # noqa: SIM115
    stream.seek(0, os.SEEK_END)
    return stream


def signal_name(number: int) -> str:
    """``SIGKILL`` for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
