"""The three charts of right-sizing: quality against cost, latency against load, memory against context.

Takes a Sizing, gives Plotly figures in plain data. Knows no HTML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from hasten.plan.sizing.answer import Sizing
from hasten.plan.sizing.judge import Assessment
from hasten.report.plots import LOG_TICKS, Figure, axis_type, layout_of

_COLOURS: Mapping[str, str] = {"gpu": "#22976a", "cpu": "#3b82c4", "edge": "#d0722a"}
_LINES = ("#22976a", "#3b82c4", "#d0722a", "#8a63c9")


def charts(found: Sizing) -> dict[str, Figure]:
    """By the id of their place on the page; those that have something to show."""
    made = {"cost": cost(found), "load": load(found), "context": context(found)}
    return {name: figure for name, figure in made.items() if figure["data"]}


def cost(found: Sizing) -> Figure:
    """Score against money a month, for everything that holds: up and to the left is better."""
    data: list[dict[str, Any]] = []
    metric = _metric(found)
    for kind, colour in _COLOURS.items():
        points = [a for a in found.recommendation.ranked if a.option.device.kind == kind and metric in a.quality]
        if points:
            data.append({
                "type": "scatter", "mode": "markers+text", "name": kind, "marker": {"color": colour, "size": 11},
                "x": [a.usd_per_month for a in points], "y": [a.quality[metric].value for a in points],
                "text": [escape(a.option.shape.title) for a in points], "textposition": "top center",
                "hovertext": [_hover(a, metric) for a in points], "hoverinfo": "text",
            })  # fmt: skip
    values = [x for trace in data for x in trace["x"]]
    return {"data": data, "layout": layout_of(x="USD a month", y=metric or "score", x_type=axis_type(values))}


def load(found: Sizing) -> Figure:
    """The percentile's answer time against the load of one replica."""
    data = [_line(line.label, line.points, number) for number, line in enumerate(found.by_load)]
    values = [x for trace in data for x in trace["x"]]
    name = f"p{found.request.percentile:g} answer, ms"
    layout = layout_of(x="requests a second of one replica", y=name, x_type=axis_type(values))
    layout["yaxis"] |= {"type": "log", **LOG_TICKS}
    return {"data": data, "layout": layout}


def context(found: Sizing) -> Figure:
    """Memory of one sequence against its length, and the room that there is."""
    data = []
    for number, line in enumerate(found.by_context):
        data.append(_line(line.label, line.points, number))
        if line.room is not None and line.points:
            ends = ((line.points[0][0], line.room), (line.points[-1][0], line.room))
            data.append(_line(f"room: {line.label}", ends, number, dash="dash"))
    return {"data": data, "layout": layout_of(x="tokens of context", y="GB", x_type="log")}


def _metric(found: Sizing) -> str:
    asked = [b.metric for b in found.request.quality]
    known = [name for a in found.recommendation.ranked for name in a.quality]
    return (asked or known or [""])[0]


def _line(label: str, points: Sequence[tuple[float, float]], number: int, *, dash: str = "solid") -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "lines", "name": escape(label), "showlegend": dash == "solid",
        "line": {"color": _LINES[number % len(_LINES)], "width": 2, "dash": dash}, "x": [p[0] for p in points],
        "y": [p[1] for p in points],
    }  # fmt: skip


def _hover(assessed: Assessment, metric: str) -> str:
    score = assessed.quality[metric]
    return (
        f"<b>{escape(assessed.option.label)}</b><br>{metric} {score.value:.1f} ({score.kind})<br>"
        f"{assessed.usd_per_month:,.0f} USD a month, {assessed.machines} machines"
    )
