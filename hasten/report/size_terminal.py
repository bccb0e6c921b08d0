"""Right-sizing for a terminal: the ranked options, what rules the others out, what else a decision needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hasten.plan.sizing.answer import Sizing
from hasten.report import size_view as view
from hasten.report.terminal import plain_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_RULED_OUT, _LAWS = 6, 3


def show_sizing(found: Sizing, *, console: Console) -> None:
    """Print the whole answer, the choice last: that is what stays in view when it has scrolled by."""
    from rich.panel import Panel

    best = found.recommendation.best
    _lines(console, "Ruled out (the closest miss of each)", view.ruled_out(found, most=_RULED_OUT))
    if best is not None:
        console.print(_table(found))
        _lines(console, "Why the first", [view.rows(found)[0].why, *view.rows(found)[0].features])
        _lines(console, "In memory", [f"{name}: {size} ({source})" for name, size, source in view.memory_parts(best)])
        _lines(console, "It costs", view.money(best))
    _lines(console, "The best score that holds", view.best_score(found))
    _lines(console, "If it were asked differently", [c.sentence for c in found.changes])
    _lines(console, "A cascade", [found.cascade.sentence] if found.cascade else [])
    _lines(console, "Buy or build", [a.sentence for a in found.apis])
    _lines(console, "Edge or cloud", found.edge)
    _lines(console, "What scaling laws say", view.laws(found)[:_LAWS])
    _lines(console, "Predictions against this host", view.checked_errors(found.checked))
    _lines(console, "Your own measurements", found.measured_notes)
    if best is not None:
        _lines(console, "What it rests on (sources: --out PAGE or --json)", view.kinds_of(best, found))
    _lines(console, "Before you trust the numbers", [f"! {line}" for line in found.warnings])
    console.print(Panel(plain_text(found.sentence), title="hasten size", border_style="green" if best else "red"))
    if found.commands:
        console.print(plain_text("Next:", style="bold"))
        for command in found.commands:
            console.print(plain_text(f"  {command}"), soft_wrap=True)


def _table(found: Sizing) -> Table:
    from rich import box
    from rich.table import Table

    p = f"p{found.request.percentile:g}"
    title = f"What holds, {found.request.setting} order{view.error_note(found)}"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    times = f"{p} answer" if view.encodes(found) else f"{p} first / next / answer"
    for column in ("model", "on", times, "memory", "USD/month", view.score_title(found)):
        table.add_column(column, justify="left" if column in ("model", "on") else "right", overflow="fold")
    for row in view.rows(found):
        cells = [
            f"{row.title}, {row.precision}",
            f"{row.machines} {row.hardware}",
            row.times,
            row.memory,
            row.money,
            row.quality,
        ]
        table.add_row(*(plain_text(cell) for cell in cells))
    return table


def _lines(console: Console, title: str, lines: Sequence[str]) -> None:
    if lines:
        console.print(plain_text(title, style="bold"))
        for line in lines:
            console.print(plain_text(f"  {line}"))
