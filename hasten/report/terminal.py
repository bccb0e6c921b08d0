"""The verdict and its tables for a terminal.

Takes the verdict and the trials, prints on a Rich console. Reads well at 80 columns and
without colour: words and signs carry the meaning, colour repeats it. Texts from the
user's data are printed as they are, never as markup or control sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hasten.plan.choose import pareto
from hasten.records import Trial, Verdict
from hasten.report import quantities as q
from hasten.report import view

if TYPE_CHECKING:
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

_TONES = {"met": "green", "not_met": "red", "baseline_best": "blue"}
_SIGNS = {"met": "+", "not_met": "x", "baseline_best": "="}
_FLIPS_SHOWN = 3
_FLIP_CHARACTERS = 60


def render_terminal(
    verdict: Verdict, trials: Sequence[Trial], *, console: Console, next_command: str | None = None
) -> None:
    """Print the whole report, the verdict last: that is what stays in view when it has scrolled by."""
    fallen, candidates = view.fallen(verdict, trials), view.reached(trials)
    if fallen:
        console.print(_rejected(fallen))
    if candidates:
        console.print(_candidates(verdict, candidates))
    console.print(_comparison(verdict))
    _print_lines(console, _flip_title(verdict), _flip_lines(verdict))
    _print_where(verdict, console)
    _print_lines(console, "Before you trust the numbers", [f"! {line}" for line in verdict.warnings])
    console.print(_verdict_panel(verdict))
    _print_lines(console, "The budget, bound by bound", _check_lines(verdict))
    _print_lines(console, "What each step bought and cost", [f"- {line}" for line in verdict.steps])
    _print_lines(console, "What a looser budget would buy", [f"- {line}" for line in verdict.relaxations])
    if next_command:
        console.print(plain_text("Next:", style="bold"))
        # A command that is wrapped or coloured cannot be copied.
        console.print(plain_text(f"  {next_command}"), soft_wrap=True)


def plain_text(content: str, *, style: str = "") -> Text:
    """Plain text: no markup; characters that could rewrite the screen are replaced."""
    from rich.text import Text

    shown = (c if c.isprintable() or c == "\n" else " " if c.isspace() else "\ufffd" for c in content)
    return Text("".join(shown), style=style)


def _verdict_panel(verdict: Verdict) -> Panel:
    from rich.panel import Panel

    headline = view.headline(verdict)
    tone = _TONES[verdict.outcome]
    body = plain_text(f"{_SIGNS[verdict.outcome]} {headline.head.upper()}\n", style=f"bold {tone}")
    body.append_text(plain_text(headline.rest, style="default not bold"))
    if verdict.speedup_vs_tuned is not None and verdict.tuned_baseline.recipe_id != verdict.baseline.recipe_id:
        against = f"\nAgainst tuned torch: {q.times_interval(verdict.speedup_vs_tuned)}"
        body.append_text(plain_text(against, style="default not bold"))
    if verdict.interrupted:
        stopped = "\nThe search was stopped before it was through; this holds for what was tried."
        body.append_text(plain_text(stopped, style="default not bold"))
    return Panel(body, title=plain_text(f"{verdict.task}: {verdict.source}"), border_style=tone, padding=(0, 1))


def _table(title: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)


def _comparison(verdict: Verdict) -> Table:
    table = _table("Side by side")
    table.add_column("")
    for name, _ in view.sides(verdict):
        table.add_column(name, justify="right")
    labels = [plain_text(side.label, style="dim") for _, side in view.sides(verdict)]
    table.add_row(plain_text("recipe", style="dim"), *labels)
    for line in view.comparison(verdict):
        table.add_row(line.name, *map(plain_text, line.cells))
    return table


def _candidates(verdict: Verdict, candidates: Sequence[Trial]) -> Table:
    table = _table("Candidates that were measured")
    table.add_column("", width=1)
    table.add_column("candidate", overflow="fold", ratio=1)
    for name in ("p50", "speed-up", "drop", "size", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    chosen_id = verdict.chosen.recipe_id if verdict.chosen else None
    front = {t.recipe_id for t in pareto(candidates)}
    table.caption = "* on the Pareto front of p50, drop, size and memory"
    table.caption_justify = "left"
    for trial in candidates:
        figures = trial.figures
        picked = trial.recipe_id == chosen_id
        table.add_row(
            ">" if picked else "*" if trial.recipe_id in front else "",
            plain_text(trial.label, style="bold" if picked else ""),
            q.ms(figures.latency_ms.p50 if figures.latency_ms else None),
            q.times(trial.speedup.estimate if trial.speedup else None),
            q.points(trial.quality_drop_pt.estimate if trial.quality_drop_pt else None),
            q.size(figures.bytes),
            q.size(figures.peak_rss_bytes),
        )
    return table


def _rejected(fallen: Sequence[Trial]) -> Table:
    table = _table(f"Rejected candidates ({len(fallen)})")
    table.add_column("candidate", overflow="fold", ratio=2)
    table.add_column("fell at", no_wrap=True)
    table.add_column("why", overflow="fold", ratio=3)
    for trial in fallen:
        where = trial.rejected_at or trial.stage
        table.add_row(plain_text(trial.label), plain_text(where), plain_text(trial.reason or "no reason was recorded"))
    return table


def _check_lines(verdict: Verdict) -> list[str]:
    signs = {True: "+", False: "x"}
    return [f"{signs[c.holds]} {c.constraint.text}: {q.check_words(c)}" for c in verdict.checks]


def _flip_title(verdict: Verdict) -> str:
    count = len(verdict.flips)
    shown = f", the first {_FLIPS_SHOWN}" if count > _FLIPS_SHOWN else ""
    return f"{count} test row{'' if count == 1 else 's'} changed prediction{shown}"


def _flip_lines(verdict: Verdict) -> list[str]:
    lines = []
    for flip in verdict.flips[:_FLIPS_SHOWN]:
        text = flip.text[:_FLIP_CHARACTERS] + ("..." if len(flip.text) > _FLIP_CHARACTERS else "")
        label = "" if flip.label is None else f" (label {flip.label})"
        lines.append(f"- {text.replace(chr(10), ' ')}\n  {flip.baseline} -> {flip.chosen}{label}")
    return lines


def _print_lines(console: Console, title: str, lines: Sequence[str]) -> None:
    if not lines:
        return
    console.print(plain_text(title, style="bold"))
    for line in lines:
        console.print(plain_text(line), highlight=False)
    console.print()


def _print_where(verdict: Verdict, console: Console) -> None:
    host, splits = verdict.host, verdict.splits
    console.print(
        plain_text(
            f"Measured on {host.cpu}, {host.threads} threads, in {q.duration(verdict.elapsed_s)}; "
            f"rows: {splits.calibration} calibration, {splits.selection} selection, {splits.test} final test "
            f"(seed {splits.seed}). Intervals are 95 %.",
            style="dim",
        )
    )
    console.print()
