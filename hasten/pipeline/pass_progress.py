"""What a pass says of itself, for whoever called it: how far it is, and how long it may still take.

Takes what passes tell their calibration, gives it to a reporter; without one a bar is drawn on stderr while a pass
runs, where stderr is a terminal. A pass does not say that it has ended, so the bar goes before its last step.
"""

from __future__ import annotations

import atexit
import time
from typing import TYPE_CHECKING

from rich.console import Console

from hasten.pipeline.progress import Bar, Reporter

if TYPE_CHECKING:
    from hasten.passes.calibration import Progress


class PassProgress:
    """Call it with each :class:`hasten.passes.calibration.Progress`; ``close`` takes away what is on the screen."""

    def __init__(self, reporter: Reporter | None = None, *, console: Console | None = None) -> None:
        self._reporter, self._console = reporter, console or Console(stderr=True)
        self._bar: Bar | None = None
        self._what, self._done, self._began = "", 0, (0, 0.0)

    def __call__(self, progress: Progress) -> None:
        if progress.note:
            self._say(progress.what)
        else:
            self._draw(progress, left_s=self._left_s(progress))

    def close(self) -> None:
        """Nothing is left on the screen."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            atexit.unregister(self.close)
        self._bar = None

    def _say(self, text: str) -> None:
        """A note comes at the end of a pass, or before its first step."""
        self.close()
        if self._reporter is not None:
            self._reporter.line(text)
        elif self._console.is_terminal:
            self._console.print(text, highlight=False, markup=False)

    def _draw(self, progress: Progress, *, left_s: float | None) -> None:
        score = "" if progress.score is None else f", best {progress.score:.2f}"
        text = f"{progress.what}: step {progress.done} of {progress.total}{score}"
        if self._reporter is not None:
            self._reporter.stage(text, done=progress.done, total=progress.total, left_s=left_s)
        elif progress.done + 1 >= progress.total:
            self.close()
        elif self._console.is_terminal:
            if self._bar is None:
                self._bar = Bar(self._console, bound="about")
                atexit.register(self.close)  # a hidden cursor would stay hidden
            self._bar.stage(text, done=progress.done, total=progress.total, left_s=left_s)

    def _left_s(self, progress: Progress) -> float | None:
        """At the pace since this pass began to tell; ``None`` before there is one."""
        now = time.monotonic()
        if progress.what != self._what or progress.done <= self._done:
            self._began = (progress.done, now)
        self._what, self._done = progress.what, progress.done
        steps, seconds = progress.done - self._began[0], now - self._began[1]
        return seconds / steps * (progress.total - progress.done) if steps else None
