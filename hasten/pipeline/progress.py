"""Progress for people: what runs now, how far, how long it may still take.

Takes calls from the loop, draws on stderr with Rich (bars on a terminal, plain lines
elsewhere). Knows nothing of what it counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from hasten.pipeline.pass_cache import DAMAGED
from hasten.records import Trial

_SILENCE_S = 30.0


class Reporter(Protocol):
    """Where the loop says what it is doing."""

    def stage(self, text: str, *, done: float, total: float, left_s: float | None) -> None:
        """``done`` of ``total`` steps are behind us; ``left_s`` is the expected time to the end."""
        ...

    def line(self, text: str) -> None:
        """One finished fact worth a line of its own."""
        ...


class Silent:
    """Says nothing."""

    def stage(self, text: str, *, done: float, total: float, left_s: float | None) -> None:
        """Ignored."""

    def line(self, text: str) -> None:
        """Ignored."""


class Lines:
    """One plain line per finished fact, for pipes and log files; in a long silence, what runs now.

    ``bound`` is what the time that is left is: the most that there is, or an estimate.
    """

    def __init__(self, write: Callable[[str], object], *, bound: str = "at most") -> None:
        self._write, self._bound, self._started = write, bound, time.monotonic()
        self._last = self._started

    def stage(self, text: str, *, done: float, total: float, left_s: float | None) -> None:
        """A pipe wants facts, not a moving bar: only after half a minute without any does it hear this."""
        del done, total
        if time.monotonic() - self._last >= _SILENCE_S:
            self.line(text if left_s is None else f"{text} ({self._bound} {clock(left_s)} left)")

    def line(self, text: str) -> None:
        self._last = time.monotonic()
        self._write(f"[{self._last - self._started:6.1f}s] {text}")


class Bar(AbstractContextManager["Bar"]):
    """A live bar at the bottom, finished facts scrolling above it. ``bound`` as with :class:`Lines`."""

    def __init__(self, console: Console, *, bound: str = "at most") -> None:
        self._bound = bound
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[left]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("starting", total=1.0, left="")
        self._progress.start()

    def stage(self, text: str, *, done: float, total: float, left_s: float | None) -> None:
        left = "" if left_s is None else f"{self._bound} {clock(left_s)} left"
        self._progress.update(self._task, description=text, completed=done, total=total, left=left)

    def line(self, text: str) -> None:
        self._progress.console.print(text, highlight=False)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


def trial_line(trial: Trial) -> str:
    """One line for a finished trial, and one for whatever damage it met."""
    return "\n".join([_line(trial), *(f"{'':9} {note}" for note in trial.notes if DAMAGED in note)])


def _line(trial: Trial) -> str:
    head = f"{trial.stage:9} {trial.label:44.44}"
    if trial.status == "rejected":
        return f"{head} rejected at {trial.rejected_at}: {trial.reason}"
    p50 = f"p50 {trial.figures.latency_ms.p50:7.2f} ms" if trial.figures.latency_ms else ""
    gain = f"  {trial.speedup.estimate:.2f}x" if trial.speedup else ""
    drop = f"  drop {trial.quality_drop_pt.estimate:+.2f} pt" if trial.quality_drop_pt else ""
    return f"{head} {p50}{gain}{drop}  ({trial.elapsed_s:.0f} s)"


def clock(seconds: float) -> str:
    """``75`` -> ``"1:15"``."""
    whole = max(0, round(seconds))
    return f"{whole // 60}:{whole % 60:02d}"
