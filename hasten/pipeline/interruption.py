"""Ctrl-C and SIGTERM as a wish to end well.

Takes a piece of work, says whether it was interrupted. Workers run in sessions of
their own and do not see the terminal's signals.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any


def interruptible(work: Callable[[], Any]) -> bool:
    """Run ``work``; True when Ctrl-C or SIGTERM ended it. The second one is raised as KeyboardInterrupt."""
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _raise) if in_main else None
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, before)
    return False


def _raise(number: int, frame: Any) -> None:
    del number, frame
    raise KeyboardInterrupt
