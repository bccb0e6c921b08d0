"""The two charts of the page as Plotly figures in plain data.

Takes the verdict, the trials and request times, gives ``{"data": [...], "layout": {...}}``.
Knows no HTML; text colours are left to the page's style sheet (light and dark), so
only marks carry colours, of a middle tone that reads on both. Every label is escaped:
Plotly reads a subset of HTML in text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from hasten.records import Figures, Interval, Latency, Measured, Trial, Verdict
from hasten.report import quantities as q
from hasten.report import view

Figure = dict[str, Any]
_COLOURS = {"torch": "#d0722a", "onnxruntime": "#3b82c4", "openvino": "#8a63c9", "native": "#b8901f"}
_OTHER, _REJECTED, _CHOSEN, _FRONT = "#5a8f8f", "#8c9099", "#22976a", "#8c9099"
_MAX_STEPS = 400  # points of a distribution curve: more than a screen can show
_TRANSPARENT = "rgba(0,0,0,0)"
_TICKS = [float(f"{digit}e{power}") for power in range(-4, 7) for digit in (1, 2, 5)]
LOG_TICKS = {"tickvals": _TICKS, "ticktext": [f"{tick:,.10g}" for tick in _TICKS]}


def has_points(verdict: Verdict, trials: Sequence[Trial]) -> bool:
    """Is there more to plot than the baseline?"""
    return len(_points(verdict, trials)) > 1


def unplotted(verdict: Verdict, trials: Sequence[Trial]) -> int:
    """Candidates that the Pareto plot cannot show: never both timed in full and compared in quality."""
    shown = {point["id"] for point in _points(verdict, trials)}
    return len({trial.recipe_id for trial in trials} - shown)


def pareto(verdict: Verdict, trials: Sequence[Trial]) -> Figure:
    """Latency against quality drop: down and to the left is better."""
    points = _points(verdict, trials)
    data = [_front(points)]
    passed = [p for p in points if not p["rejected"]]
    for kind in dict.fromkeys(p["kind"] for p in passed):
        data.append(_markers([p for p in passed if p["kind"] == kind], name=kind))
    if rejected := [p for p in points if p["rejected"]]:
        data.append(_markers(rejected, name="rejected"))
    named = [p for p in points if p["role"]]
    data += [_role(p) for p in named]
    x_type = axis_type([p["x"] for p in points])
    layout = layout_of(x="latency p50, ms", y="quality drop, points", x_type=x_type)
    layout["xaxis"]["range"] = _range_with_names([p["x"] for p in points], x_type=x_type)
    layout["shapes"] = _bounds(verdict)
    layout["hovermode"] = "closest"
    return {"data": data, "layout": layout}


def latency(verdict: Verdict, samples: Mapping[str, Sequence[float]]) -> Figure:
    """Share of requests answered within a time, for every side: steep and to the left is better."""
    data = []
    for name, side in view.sides(verdict):
        key = "baseline" if name == "baseline" else "chosen" if side is verdict.chosen else ""
        curve = _curve(samples.get(key, ()), side.figures.latency_ms)
        if curve is not None:
            data += _distribution(name, side, *curve)
    times = [x for trace in data for x in trace["x"]]
    layout = layout_of(x="latency, ms", y="requests answered, %", x_type=axis_type(times))
    layout["yaxis"] |= {"range": [0, 101], "tickvals": [0, 25, 50, 75, 90, 95, 100]}
    layout["hovermode"] = "closest"
    return {"data": data, "layout": layout}


# --------------------------------------------------------------------------- Pareto


def _points(verdict: Verdict, trials: Sequence[Trial]) -> list[dict[str, Any]]:
    points = []
    for name, side in view.sides(verdict):
        drop = _side_drop(side, verdict, trials)
        points.append(_point(side.recipe, side.recipe_id, side.label, side.figures, drop, role=name))
    known = {point["id"] for point in points if point}
    for trial in view.reached(trials):
        if trial.recipe_id not in known:
            points.append(_trial_point(trial))
    for trial in view.rejected(trials):
        if trial.stage != "preflight" and trial.recipe_id not in known:
            points.append(_trial_point(trial))
    return [point for point in points if point is not None]


def _trial_point(trial: Trial) -> dict[str, Any] | None:
    point = _point(trial.recipe, trial.recipe_id, trial.label, trial.figures, trial.quality_drop_pt, role="")
    if point is not None and trial.status == "rejected":
        point["rejected"] = True
        point["hover"] += f"<br>rejected at {escape(trial.rejected_at or trial.stage)}"
    return point


def _side_drop(side: Measured, verdict: Verdict, trials: Sequence[Trial]) -> Interval | None:
    if side.recipe_id == verdict.baseline.recipe_id:
        return Interval(0.0, 0.0, 0.0)
    if verdict.chosen is not None and side.recipe_id == verdict.chosen.recipe_id:
        return verdict.quality_drop
    own = next((t for t in view.reached(trials) if t.recipe_id == side.recipe_id), None)
    return own.quality_drop_pt if own else None


def _point(
    recipe: Mapping[str, Any],
    identity: str,
    label: str,
    figures: Figures,
    drop: Interval | None,
    *,
    role: str,
) -> dict[str, Any] | None:
    if figures.latency_ms is None or drop is None:
        return None
    lines = [
        f"<b>{escape(label)}</b>" + (f" ({role})" if role else ""),
        f"p50 {q.ms(figures.latency_ms.p50)}, p95 {q.ms(figures.latency_ms.p95)}",
        "quality drop " + ("0 pt (the reference)" if role == "baseline" else q.points_interval(drop)),
        f"size {q.size(figures.bytes)}, memory {q.size(figures.peak_rss_bytes)}",
    ]
    return {
        "id": identity, "kind": str(recipe["runtime"]["kind"]), "role": role, "rejected": False,
        "x": figures.latency_ms.p50, "y": drop.estimate, "drop": drop, "hover": "<br>".join(lines),
    }  # fmt: skip


def _front(points: Sequence[Mapping[str, Any]]) -> Figure:
    """The steps under which no candidate lies: nothing faster loses as little, nothing better is as fast."""
    best: list[Mapping[str, Any]] = []
    for point in sorted((p for p in points if not p["rejected"]), key=lambda p: (p["x"], p["y"])):
        if not best or point["y"] < best[-1]["y"]:
            best.append(point)
    return {
        "type": "scatter", "mode": "lines", "name": "Pareto front", "hoverinfo": "skip",
        "x": [p["x"] for p in best], "y": [p["y"] for p in best],
        "line": {"shape": "hv", "width": 1.5, "dash": "dot", "color": _FRONT},
    }  # fmt: skip


def _markers(points: Sequence[Mapping[str, Any]], *, name: str) -> Figure:
    rejected = name == "rejected"
    colour = _REJECTED if rejected else _COLOURS.get(name, _OTHER)
    return {
        "type": "scatter", "mode": "markers", "name": escape(name),
        "x": [p["x"] for p in points], "y": [p["y"] for p in points],
        "text": [p["hover"] for p in points], "hovertemplate": "%{text}<extra></extra>",
        "marker": {
            "size": 9 if rejected else 11, "symbol": "x-thin" if rejected else "circle",
            "color": colour, "line": {"width": 2 if rejected else 0, "color": colour},
        },
        "error_y": {
            "type": "data", "symmetric": False, "thickness": 1, "width": 0, "color": colour,
            "array": [max(0.0, p["drop"].high - p["y"]) for p in points],
            "arrayminus": [max(0.0, p["y"] - p["drop"].low) for p in points],
        },
    }  # fmt: skip


def _role(point: Mapping[str, Any]) -> Figure:
    """A ring and a name around the baseline, the tuned baseline and the chosen."""
    chosen = point["role"] in ("chosen", "closest miss")
    place = {"baseline": "bottom center", "tuned baseline": "top center"}.get(point["role"], "middle left")
    return {
        "type": "scatter", "mode": "markers+text", "showlegend": False, "hoverinfo": "skip",
        "x": [point["x"]], "y": [point["y"]], "text": [point["role"]],
        "textposition": place, "cliponaxis": False,
        "textfont": {"size": 13},
        "marker": {"size": 20, "color": _TRANSPARENT, "symbol": "circle",
                   "line": {"width": 2.5 if chosen else 1.25, "color": _CHOSEN if chosen else _FRONT}},
    }  # fmt: skip


def _bounds(verdict: Verdict) -> list[Figure]:
    """Lines at the budget's bounds on the two plotted figures."""
    line = {"width": 1, "dash": "dash", "color": "#c2504a"}
    made = []
    for bound in verdict.budget.constraints:
        label = {"text": escape(bound.text), "textposition": "end", "font": {"size": 11}}
        if bound.metric == "quality_drop":
            ends = {"xref": "paper", "x0": 0, "x1": 1, "y0": bound.value, "y1": bound.value}
        elif bound.metric == "p50_ms":
            ends = {"yref": "paper", "y0": 0, "y1": 1, "x0": bound.value, "x1": bound.value}
        else:
            continue
        made.append({"type": "line", "layer": "above", "line": line, "label": label, **ends})
    return made


# --------------------------------------------------------------------------- distributions


def _curve(times: Sequence[float], known: Latency | None) -> tuple[list[float], list[float], bool] | None:
    """Milliseconds and percents of a distribution; the four percentiles alone when there are no raw times."""
    if len(times) > 1:
        ordered = sorted(times)
        n = len(ordered)
        picks = sorted({round(i * (n - 1) / (_MAX_STEPS - 1)) for i in range(_MAX_STEPS)})
        return [round(ordered[i], 4) for i in picks], [round(100 * (i + 1) / n, 3) for i in picks], True
    if known is None:
        return None
    return [known.p50, known.p90, known.p95, known.p99], [50, 90, 95, 99], False


def _distribution(name: str, side: Measured, x: list[float], y: list[float], raw: bool) -> list[Figure]:
    chosen = name in ("chosen", "closest miss")
    colour = _CHOSEN if chosen else _COLOURS["torch"] if name == "baseline" else _REJECTED
    curve = {
        "type": "scatter", "name": name, "x": x, "y": y,
        "mode": "lines" if raw else "lines+markers",
        "line": {"width": 2.5, "color": colour, "dash": "solid" if raw else "dot"},
        "hovertemplate": f"{escape(name)}: %{{y:.0f}} % within %{{x:.3~g}} ms<extra></extra>",
    }  # fmt: skip
    known = side.figures.latency_ms
    if not raw or known is None:
        return [curve]
    marks = {
        "type": "scatter", "mode": "markers", "showlegend": False,
        "x": [known.p50, known.p95], "y": [50, 95], "text": ["p50", "p95"],
        "marker": {"size": 8, "color": colour},
        "hovertemplate": f"{escape(name)} %{{text}}: %{{x:.3~g}} ms<extra></extra>",
    }  # fmt: skip
    return [curve, marks]


# --------------------------------------------------------------------------- layout


def _range_with_names(values: Sequence[float], *, x_type: str) -> list[float]:
    """Room on the left for the chosen one's name; in the axis's own terms (exponents when logarithmic)."""
    ends = [math.log10(v) if x_type == "log" else v for v in (min(values), max(values))]
    span = (ends[1] - ends[0]) or 1.0
    return [ends[0] - 0.2 * span, ends[1] + 0.12 * span]


def axis_type(values: Sequence[float]) -> str:
    """A logarithmic axis where the fastest is several times faster than the slowest."""
    positive = [v for v in values if v > 0]
    return "log" if len(positive) == len(values) > 0 and max(positive) / min(positive) > 4 else "linear"


def layout_of(*, x: str, y: str, x_type: str) -> Figure:
    axis = {"automargin": True, "showline": False, "zeroline": False, "ticks": "", "fixedrange": False}
    return {
        "autosize": True, "height": 420, "margin": {"l": 48, "r": 16, "t": 8, "b": 44},
        "paper_bgcolor": _TRANSPARENT, "plot_bgcolor": _TRANSPARENT,
        "font": {"family": "inherit", "size": 13},
        "hoverlabel": {
            "bgcolor": "#24272c", "bordercolor": "#24272c", "align": "left",
            "font": {"color": "#f4f2ee", "size": 13},
        },
        "modebar": {"bgcolor": _TRANSPARENT, "color": _REJECTED, "activecolor": _COLOURS["onnxruntime"]},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "xaxis": {**axis, "title": {"text": x, "standoff": 8}, "type": x_type,
                  **(LOG_TICKS if x_type == "log" else {"rangemode": "tozero"})},
        "yaxis": {**axis, "title": {"text": y, "standoff": 8}},
    }  # fmt: skip
