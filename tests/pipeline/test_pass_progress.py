"""What a caller of passes sees and hears while one runs."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from hasten.passes.calibration import Progress
from hasten.pipeline import pass_progress
from hasten.pipeline.pass_progress import PassProgress


class Heard:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, float, float, float | None]] = []
        self.lines: list[str] = []

    def stage(self, text: str, *, done: float, total: float, left_s: float | None) -> None:
        self.stages.append((text, done, total, left_s))

    def line(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found = [100.0]
    monkeypatch.setattr(pass_progress.time, "monotonic", lambda: found[0])
    return found


def test_the_time_left_is_that_of_the_pace_so_far(now: list[float]) -> None:
    heard = Heard()
    tell = PassProgress(heard)
    tell(Progress("distilling", 7, 31))  # a resumed one begins in the middle
    for done in (8, 9):
        now[0] += 2.0
        tell(Progress("distilling", done, 31, 91.5))
    assert heard.stages[0] == ("distilling: step 7 of 31", 7, 31, None)
    assert heard.stages[-1] == ("distilling: step 9 of 31, best 91.50", 9, 31, 2.0 * 22)
    now[0] += 60.0  # the next pass, of the same name
    tell(Progress("distilling", 1, 4))
    now[0] += 3.0
    tell(Progress("distilling", 2, 4))
    assert [left for *_, left in heard.stages[-2:]] == [None, 6.0]
    tell(Progress("hqq", 0, 9))
    assert heard.stages[-1][-1] is None
    tell(Progress("kept the best", 2, 4, note=True))
    assert heard.lines == ["kept the best"]


def drawn(*, terminal: bool) -> tuple[PassProgress, io.StringIO]:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=100)
    return PassProgress(console=console), screen


def test_a_terminal_shows_it_until_the_last_step() -> None:
    tell, screen = drawn(terminal=True)
    for done in range(1, 31):
        tell(Progress("distilling 6 epochs", done, 30))
        assert (tell._bar is None) == (done >= 29)
    assert "distilling 6 epochs: step" in screen.getvalue()
    assert screen.getvalue().count("\x1b[?25l") == screen.getvalue().count("\x1b[?25h") == 1, "the cursor is back"
    tell(Progress("rtn: matrix by matrix", 0, 9))
    assert tell._bar is not None
    tell(Progress("rtn: interrupted", 3, 9, note=True))
    assert tell._bar is None
    assert "rtn: interrupted" in screen.getvalue()
    tell.close()


def test_anything_else_stays_silent() -> None:
    tell, screen = drawn(terminal=False)
    for done in range(1, 31):
        tell(Progress("distilling", done, 30, note=done == 30))
    assert screen.getvalue() == ""


def test_a_workbench_hands_it_on(tiny: Any) -> None:
    import hasten
    from hasten.passes import DistillConfig, distill

    heard = Heard()
    bench = hasten.workbench(tiny[0], task="text-classification", data=tiny[1], reporter=heard)
    distill(bench.model(), DistillConfig(epochs=1, batch=16), bench.calibration())
    (total,) = {total for _, _, total, _ in heard.stages}
    assert [done for _, done, _, _ in heard.stages] == list(range(1, int(total) + 1))
    assert heard.stages[0][0].startswith("distilling 1 epoch")
    silent = hasten.workbench(tiny[0], task="text-classification", data=tiny[1], reporter=heard, progress=False)
    count = len(heard.stages)
    distill(silent.model(), DistillConfig(epochs=1, batch=16), silent.calibration())
    assert len(heard.stages) == count
