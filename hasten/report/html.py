"""The report as one self-contained HTML page.

Takes the verdict and the trials, gives a file that makes no network request: style,
script and data stand inside, and the page's own content policy forbids the rest.
Texts from the user's data are hostile here: all go through Jinja's escaping, and the
charts' data through :func:`_script_json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hasten import __version__
from hasten.ledger import plain
from hasten.plan.choose import pareto
from hasten.plan.cost import prediction_error
from hasten.records import Interval, MissingDependency, Trial, Verdict, Workload
from hasten.report import plots, quantities, view
from hasten.report import steps as stepwise
from hasten.report.atomic import write_atomically

FILE_NAME = "report.html"
_HERE = Path(__file__).parent
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
    from markupsafe import Markup

    figures = _figures(verdict, trials, samples=samples or {})
    steps = stepwise.steps(verdict, trials)
    template = _environment().get_template("page.html.j2")
    page: str = template.render(
        v=verdict,
        title=title or f"hasten: {verdict.source}",
        headline=view.headline(verdict),
        sides=view.sides(verdict),
        comparison=view.comparison(verdict),
        candidates=view.reached(trials),
        rejected=view.rejected(trials),
        steps=steps,
        bought=stepwise.bought(steps),
        slowest_ms=max((s.figures.latency_ms.p50 for s in steps if s.figures.latency_ms), default=None),
        forecasts=view.forecasts(trials),
        forecast_error=prediction_error(trials),
        front={t.recipe_id for t in pareto(trials)},
        method=view.method(verdict, workload),
        plot_ids=tuple(figures),
        unplotted=plots.unplotted(verdict, trials),
        raw_samples=bool(samples),
        command=command,
        flips_shown=_FLIPS_SHOWN,
        version=__version__,
        style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        figures=Markup(_script_json(figures)),
        plotly=Markup(_plotly_script()),
    )
    return page


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


def _environment() -> Any:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise MissingDependency("jinja2", extra="optimize") from error
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    q = quantities
    environment.filters |= {
        "ms": q.ms, "size": q.size, "points": q.points, "quality": q.quality, "times": q.times,
        "times_interval": q.times_interval, "points_interval": q.points_interval, "duration": q.duration,
        "times_range": q.times_range, "points_range": q.points_range, "typeset": _typeset,
        "metric_name": view.metric_name, "sentence_case": _sentence_case,
        "check": q.check_words, "clip": _clip, "pretty": _pretty,
    }  # fmt: skip
    environment.globals["strip"] = strip
    return environment


def _sentence_case(text: str) -> str:
    return text[:1].upper() + text[1:]


def _typeset(text: str) -> str:
    """Arrows drawn, and never at the start of a line."""
    return text.replace(" -> ", "\u00a0\u2192 ")


def _clip(text: str) -> str:
    """A row's text, shortened: the whole of it stands in verdict.json."""
    return text if len(text) <= _FLIP_CHARACTERS else text[:_FLIP_CHARACTERS] + " ..."


def _pretty(data: Any) -> str:
    return json.dumps(plain(data), indent=2)


def _script_json(data: Any) -> str:
    """JSON that may stand inside a script element: no text in it can close the element or open a comment."""
    text = json.dumps(plain(data), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _plotly_script() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MissingDependency("plotly", extra="optimize") from error
    script: str = get_plotlyjs()
    assert "</script" not in script.lower(), "the plotting script would close its own element"
    return script
