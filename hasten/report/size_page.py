"""Right-sizing as an HTML page in the common frame. Takes a Sizing, writes one file."""

from __future__ import annotations

from pathlib import Path

from hasten.atomic import write_atomically
from hasten.plan.sizing.answer import Sizing
from hasten.report import size_plots
from hasten.report import size_view as view
from hasten.report.frame import render


def write_sizing(path: str | Path, found: Sizing) -> None:
    """Write the page atomically. Raises MissingDependency without Jinja or Plotly."""
    write_atomically(path, render_sizing(found))


def render_sizing(found: Sizing) -> str:
    """The page as text."""
    best = found.recommendation.best
    return render(
        "size.html.j2",
        filters={},
        figures=size_plots.charts(found),
        s=found,
        title="hasten: what to deploy",
        rows=view.rows(found),
        best=best,
        ruled_out=view.ruled_out(found),
        memory=view.memory_parts(best) if best else [],
        sources=view.sources(best, found) if best else [],
        best_score=view.best_score(found),
        money=view.money(best) if best else [],
        errors=view.checked_errors(found.checked),
        kinds=view.KINDS,
        encoder=view.encodes(found),
        error_note=view.error_note(found),
        score_title=view.score_title(found),
    )
