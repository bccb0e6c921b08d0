"""What a log file hears."""

from __future__ import annotations

import pytest

from hasten.pipeline import progress
from hasten.pipeline.pass_cache import DAMAGED
from hasten.records import Trial


def test_a_long_silence_is_broken_and_a_short_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    said: list[str] = []
    lines = progress.Lines(said.append)
    lines.stage("training: step 1", done=0, total=1, left_s=60.0)
    assert said == []
    now[0] += 31
    lines.stage("training: step 9", done=0, total=1, left_s=75.0)
    lines.stage("training: step 10", done=0, total=1, left_s=74.0)
    assert said == ["[  31.0s] training: step 9 (at most 1:15 left)"]


def test_a_trial_says_what_was_damaged_and_made_again() -> None:
    trial = Trial(
        recipe={}, recipe_id="r", label="3 layers", stage="screen", status="ok", elapsed_s=1.0,
        notes=("stopped by the clock", f"what the first 2 passes had made {DAMAGED} (config.json): they are run again"),
    )  # fmt: skip
    line, *more = progress.trial_line(trial).splitlines()
    assert line.startswith("screen    3 layers")
    assert [text.strip() for text in more] == [trial.notes[1]]
