"""The terminal report: everything said in words, inside 80 columns, hostile texts tamed."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from hasten.records import Flip, Trial, Verdict
from hasten.report.terminal import render_terminal

NEXT = "hasten run out/bundle --data reviews.csv " + "--flag with/a/long/path " * 4


def rendered(verdict: Verdict, trials: list[Trial], *, width: int = 80, color: bool = False) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=width, no_color=not color, force_terminal=color, legacy_windows=False)
    render_terminal(verdict, trials, console=console, next_command=NEXT)
    return stream.getvalue()


def test_it_says_everything_in_80_columns(verdict: Verdict, trials: list[Trial]) -> None:
    text = rendered(verdict, trials)
    lines = text.splitlines()
    assert "MEETS THE BUDGET" in text
    for figure in (
        "2.21 ms",
        "18.1 ms",
        "6.41 ms",
        "425 /s",
        "23.0 MB",
        "512 MB",
        "78.90",
        "5.12x",
        "0.20 pt",
    ):
        assert figure in text, figure
    for word in (
        "parity",
        "export",
        "memory",
        "g++ is not",
        "needs 9.8 GB, 5.1 GB are free",
        "relax quality_drop",
    ):
        assert word in text, word
    assert "+ quality_drop<=1%: measured 0.20 pt: met, over its whole interval" in lines
    assert "3 test rows changed prediction" in lines
    assert max(len(line) for line in lines if NEXT[:20] not in line) <= 80


def test_the_next_command_stays_on_one_line_to_be_copied(verdict: Verdict, trials: list[Trial]) -> None:
    assert f"  {NEXT}".rstrip() in [line.rstrip() for line in rendered(verdict, trials, color=True).splitlines()]


def test_the_verdict_stays_in_view_at_the_end(verdict: Verdict, trials: list[Trial]) -> None:
    text = rendered(verdict, trials)
    assert text.index("Rejected candidates") < text.index("MEETS THE BUDGET") < text.index("Next:")


def test_outcomes_differ_without_colour(verdict: Verdict, trials: list[Trial]) -> None:
    missed = rendered(replace(verdict, outcome="not_met", sentence="CLOSEST MISS: 5x"), trials)
    assert "x CLOSEST MISS" in missed
    assert "closest miss" in missed
    best = replace(verdict, outcome="baseline_best", sentence="keep it", chosen=None, speedup_vs_tuned=None)
    assert "= NOTHING BEATS YOUR BASELINE" in rendered(best, trials)


def test_an_empty_run_is_still_a_report(nothing_found: Verdict) -> None:
    text = rendered(nothing_found, [])
    assert "stopped before it was through" in text
    assert "Rejected" not in text


@pytest.mark.parametrize("hostile", ["\x1b[2J\x1b[31mred", "\u202egnp.exe", "a\x07b\x00c\rd"])
def test_texts_cannot_drive_the_terminal(verdict: Verdict, trials: list[Trial], hostile: str) -> None:
    flip = Flip(1, hostile, hostile, hostile, hostile)
    changed = replace(verdict, flips=(flip,), source=hostile, sentence=hostile, warnings=(hostile,))
    text = rendered(changed, [replace(trials[1], label=hostile, reason=hostile), *trials])
    assert not any(c in text for c in "\x1b\u202e\x07\x00\r")


def test_texts_are_not_markup(verdict: Verdict, trials: list[Trial]) -> None:
    changed = replace(verdict, sentence="5x [bold]faster[/bold] [/] :smile:")
    assert "[bold]faster[/bold] [/] :smile:" in rendered(changed, trials)
