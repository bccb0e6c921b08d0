"""Right-sizing for a terminal: the ranked options, what rules the others out, what else a decision needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hasten.plan.sizing.answer import Sizing
from hasten.report import size_view as view
from hasten.report.terminal import plain_text

if TYPE_CHECKING:
    from rich.console import Console


def show_sizing(found: Sizing, *, console: Console) -> None:
    """Print the whole answer, the choice last."""
    from rich import box
    from rich.panel import Panel
    from rich.table import Table

    best, encoder = found.recommendation.best, view.encodes(found)
    _lines(console, "Ruled out (the closest miss of each)", view.ruled_out(found))
    if best is not None:
        p = f"p{found.request.percentile:g}"
        table = Table(title=f"What holds, {found.request.setting} order", box=box.SIMPLE_HEAD, title_justify="left")
        times = [f"{p} answer"] if encoder else [f"{p} first token", f"{p} each next", f"{p} answer"]
        for column in ("model", "on", "replicas", *times, "memory", "USD/month", "quality"):
            table.add_column(column, justify="left" if column in ("model", "on") else "right")
        for row in view.rows(found):
            spans = [row.whole] if encoder else [row.first, row.token, row.whole]
            cells = [
                f"{row.title}, {row.precision}",
                row.hardware,
                row.machines,
                *spans,
                row.memory,
                row.money,
                row.quality,
            ]
            table.add_row(*(plain_text(cell) for cell in cells))
        console.print(table)
        _lines(console, "Why the first", [view.rows(found)[0].why, *view.rows(found)[0].features])
        _lines(console, "In memory", [f"{name}: {size} ({source})" for name, size, source in view.memory_parts(best)])
        _lines(console, "It costs", view.money(best))
        _lines(console, "Its figures come from", [f"{n}: {v} ({k}: {s})" for n, v, k, s in view.sources(best, found)])
    _lines(console, "If it were asked differently", [c.sentence for c in found.changes])
    _lines(console, "A cascade", [found.cascade.sentence] if found.cascade else [])
    _lines(console, "Buy or build", [a.sentence for a in found.apis])
    _lines(console, "Edge or cloud", found.edge)
    _lines(console, "What scaling laws say", view.laws(found))
    _lines(console, "Predictions against this host", view.checked_errors(found.checked))
    _lines(console, "Your own measurements", found.measured_notes)
    _lines(console, "Before you trust the numbers", [f"! {line}" for line in found.warnings])
    console.print(Panel(plain_text(found.sentence), title="hasten size", border_style="green" if best else "red"))
    if found.commands:
        console.print(plain_text("Next:", style="bold"))
        for command in found.commands:
            console.print(plain_text(f"  {command}"), soft_wrap=True)


def _lines(console: Console, title: str, lines: list[str] | tuple[str, ...]) -> None:
    if lines:
        console.print(plain_text(title, style="bold"))
        for line in lines:
            console.print(plain_text(f"  {line}"))
