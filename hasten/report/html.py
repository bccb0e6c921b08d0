"""The report as one self-contained HTML page.

Takes the verdict and the trials, gives a file in the common frame (:mod:`hasten.report.frame`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hasten.atomic import write_atomically
from hasten.plan.choose import pareto
from hasten.plan.cost import prediction_error
from hasten.records import Interval, Trial, Verdict, Workload
from hasten.report import plots, quantities, view
from hasten.report import steps as stepwise
from hasten.report.frame import render

FILE_NAME = "report.html"
_FLIPS_SHOWN = 10
_FLIP_CHARACTERS = 300


def write_html(
    path: str | Path,
    verdict: Verdict,
    trials: Sequence[Trial],
    *,
    command: str,
    samples: Mapping[str, Sequence[float]] | None = None,
    title: str | None = None,
    workload: Workload | None = None,
) -> None:
    """Write the page atomically. ``command`` is what reproduces the run.

    ``samples`` maps ``baseline`` and ``chosen`` to request times in ms; without it the latency chart shows
    the percentiles alone. Raises MissingDependency without Jinja or Plotly, or OSError and writes nothing.
    """
    page = render_html(verdict, trials, command=command, samples=samples, title=title, workload=workload)
    write_atomically(path, page)


def render_html(
    verdict: Verdict,
    trials: Sequence[Trial],
    *,
    command: str,
    samples: Mapping[str, Sequence[float]] | None = None,
    title: str | None = None,
    workload: Workload | None = None,
) -> str:
    """The page as text; arguments as in :func:`write_html`."""
    figures = _figures(verdict, trials, samples=samples or {})
    steps = stepwise.steps(verdict, trials)
    return render(
        "page.html.j2",
        filters=_FILTERS,
        figures=figures,
        strip=strip,
        v=verdict,
        title=title or f"hasten: {verdict.source}",
        headline=view.headline(verdict),
        sides=view.sides(verdict),
        comparison=view.comparison(verdict),
        candidates=view.reached(trials),
        rejected=view.fallen(verdict, trials),
        steps=steps,
        bought=stepwise.bought(steps),
        slowest_ms=max((s.figures.latency_ms.p50 for s in steps if s.figures.latency_ms), default=None),
        forecasts=view.forecasts(trials),
        forecast_error=prediction_error(trials),
        front={t.recipe_id for t in pareto(trials)},
        method=view.method(verdict, workload),
        unplotted=plots.unplotted(verdict, trials),
        raw_samples=bool(samples),
        command=command,
        flips_shown=_FLIPS_SHOWN,
    )


def _figures(
    verdict: Verdict, trials: Sequence[Trial], *, samples: Mapping[str, Sequence[float]]
) -> dict[str, plots.Figure]:
    """The charts that have something to show, by the id of their place on the page."""
    figures = {"latency": plots.latency(verdict, samples)}
    if plots.has_points(verdict, trials):
        figures["pareto"] = plots.pareto(verdict, trials)
    return {name: figure for name, figure in figures.items() if figure["data"]}


def strip(interval: Interval, *, neutral: float, bound: float | None = None) -> dict[str, float | None]:
    """Where an interval lies on a line from 0 to 100 that also holds its neutral value and its bound."""
    held = [interval.low, interval.high, interval.estimate, neutral, *([] if bound is None else [bound])]
    low, high = min(held), max(held)
    pad = (high - low or 1.0) * 0.06
    low, width = low - pad, (high - low or 1.0) + 2 * pad

    def at(value: float) -> float:
        return round(100 * (value - low) / width, 2)

    return {
        "low": at(interval.low),
        "width": round(at(interval.high) - at(interval.low), 2),
        "estimate": at(interval.estimate),
        "neutral": at(neutral),
        "bound": None if bound is None else at(bound),
    }


def _clip(text: str) -> str:
    """A row's text, shortened: the whole of it stands in verdict.json."""
    return text if len(text) <= _FLIP_CHARACTERS else text[:_FLIP_CHARACTERS] + " ..."


_FILTERS: Mapping[str, Any] = {
    "ms": quantities.ms, "size": quantities.size, "points": quantities.points, "quality": quantities.quality,
    "times": quantities.times, "times_interval": quantities.times_interval,
    "points_interval": quantities.points_interval, "duration": quantities.duration,
    "times_range": quantities.times_range, "points_range": quantities.points_range, "check": quantities.check_words,
    "metric_name": view.metric_name, "clip": _clip,
}  # fmt: skip
