"""Right-sizing as rows and short texts, the same in the terminal and on the page. Takes a Sizing, knows no layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hasten.plan.sizing.advice import why
from hasten.plan.sizing.answer import Checked, Sizing
from hasten.plan.sizing.figures import Figure, short
from hasten.plan.sizing.judge import Assessment
from hasten.plan.sizing.shapes import readable
from hasten.report import quantities as q

# The mark of a figure's kind, and what it means.
KINDS = {
    "measured": "measured here",
    "predicted": "predicted by a model",
    "published": "published by others",
    "assumed": "assumed: edit it to yours",
}
_SHOWN_RULINGS = 12


@dataclass(frozen=True, slots=True)
class Row:
    """One ranked option in short texts."""

    title: str
    precision: str
    hardware: str
    machines: str
    first: str
    token: str
    whole: str
    times: str
    memory: str
    money: str
    quality: str
    missed: tuple[str, ...]
    features: tuple[str, ...]
    why: str


def encodes(found: Sizing) -> bool:
    """Are they encoders, which give no tokens?"""
    best = found.recommendation.best
    return (best.option.shape.kind if best else found.request.kinds[0]) == "encoder"


def rows(found: Sizing) -> list[Row]:
    """The ranked options."""
    return [_row(a, found) for a in found.recommendation.ranked]


def _row(found: Assessment, sizing: Sizing) -> Row:
    option, figures = found.option, found.figures
    many = f"{option.devices} x {option.device.name}" if option.devices > 1 else option.device.name
    edge = option.device.kind == "edge"
    spans = [_ms(figures[name]) for name in ("ttft_ms", "tpot_ms", "latency_ms") if name in figures]
    asked = [b.metric for b in sizing.request.quality]
    names = asked or sorted(found.quality)[:1]
    scores = [
        f"{'' if len(asked) == 1 else name + ' '}{f.value:.1f}{_mark(f)}"
        for name in names
        if (f := found.quality.get(name)) is not None
    ]
    return Row(
        title=f"{option.shape.title} ({readable(option.shape.total)})", precision=option.numbers, hardware=many,
        machines="one a user:" if edge else f"{found.replicas} x", first=spans[0], token=spans[1 % len(spans)],
        whole=spans[-1], times=" / ".join(spans), memory=q.size(found.memory.total),
        money=f"{figures['usd_per_month'].value:,.0f}", quality=", ".join(scores) or q.MISSING, missed=found.missed,
        features=(*option.features, *option.techniques), why=why(found, sizing.request),
    )  # fmt: skip


def score_title(found: Sizing) -> str:
    """The one score that was asked for, by its name."""
    asked = [b.metric for b in found.request.quality]
    return asked[0] if len(asked) == 1 else "score"


def error_note(found: Sizing) -> str:
    """How far the ranked times may be off."""
    errors = {f.error for a in found.recommendation.ranked for name, f in a.figures.items() if name.endswith("_ms")}
    known = sorted(e for e in errors if e is not None)
    if not known:
        return ""
    return f"; times ±{known[-1]:.0%}" if known[0] == known[-1] else f"; times ±{known[0]:.0%} to {known[-1]:.0%}"


def ruled_out(found: Sizing, *, most: int = _SHOWN_RULINGS) -> list[str]:
    """The closest misses, in words."""
    shown = found.recommendation.ruled_out[:most]
    said = [f"{r.option.label}: {r.reason}; {r.remedy} would help" for r in shown]
    rest = len(found.recommendation.ruled_out) - len(shown)
    return [*said, f"and {rest} more"] if rest else said


def memory_parts(found: Assessment) -> list[tuple[str, str, str]]:
    """(name, size, source) of what the best option holds in memory."""
    parts = ("weights", "cache", "activations", "runtime")
    figures = [(name, getattr(found.memory, name)) for name in parts]
    share, name = found.option.device.usable_share.value, found.option.device.name
    room = f"{share:.0%} of what {found.option.devices} x {name} has"
    limit = "the model's limit" if found.largest_context == found.option.shape.max_context else room
    return [
        *((name, q.size(figure.value), figure.source) for name, figure in figures),
        ("largest batch", f"{found.largest_batch:,} at the context asked", room),
        ("longest context", f"{found.largest_context:,} tokens of one request", limit),
    ]


def sources(found: Assessment, sizing: Sizing) -> list[tuple[str, str, str, str]]:
    """(name, value, kind, source) of everything that the best option was computed from."""
    device, precision = found.option.device, found.option.precision
    given = {
        "memory": (device.memory_bytes, q.size(device.memory_bytes.value)),
        "bandwidth": (device.bandwidth_bytes_s, f"{q.size(device.bandwidth_bytes_s.value)}/s"),
        f"arithmetic in {precision}": (device.ops(precision), f"{short(device.ops(precision).value / 1e12)} T/s"),
        "power": (device.watts, f"{device.watts.value:g} W"),
        "price": (device.usd_per_h, f"{device.usd_per_h.value:.4g} USD an hour"),
    }
    made: list[tuple[str, str, str, str]] = [(name, text, f.kind, f.source) for name, (f, text) in given.items()]
    return made + [(name, short(f.value), f.kind, f.source) for name, f in sizing.assumptions]


def kinds_of(found: Assessment, sizing: Sizing) -> list[str]:
    """Which of its figures are published, measured and assumed, without their sources."""
    rows = sources(found, sizing)
    by_kind = {kind: [f"{name} {value}" for name, value, k, _ in rows if k == kind] for kind in KINDS}
    return [f"{KINDS[kind]}: {', '.join(names)}" for kind, names in by_kind.items() if names]


def checked_errors(points: Sequence[Checked]) -> list[str]:
    """How far predictions were from what was measured on this host, for each unit."""
    said = []
    for unit, name in (("ms", "latency"), ("MB", "memory")):
        errors = sorted(abs(p.error) for p in points if p.unit == unit)
        if errors:
            middle = errors[len(errors) // 2]
            said.append(f"{name}: {len(errors)} points, median error {middle:.0%}, worst {errors[-1]:.0%}")
    return said


def laws(found: Sizing) -> list[str]:
    """What scaling laws say of the ranked decoders, a line each."""
    return [
        f"{row.model}, trained on {readable(row.tokens)} tokens: loss {row.loss['chinchilla']:.3f} (Chinchilla), "
        f"{row.loss['epoch']:.3f} (refit); best for its size would be {readable(row.optimal_tokens)} tokens, for its "
        f"computation {readable(row.optimal_size)} parameters; int4 "
        + (f"is outside the law ({row.stretched})" if row.stretched else f"costs {row.rounding_nats['int4']:.3f} nats")
        for row in found.laws
    ]


def best_score(found: Sizing) -> list[str]:
    """What the most that can be had within the bounds costs, where it is not the choice."""
    top, metrics = found.recommendation.best_score, [b.metric for b in found.request.quality]
    if top is None or found.recommendation.best is None or top.option == found.recommendation.best.option:
        return []
    score = top.quality[metrics[0]]
    return [f"{top.option.label}: {metrics[0]} {score.value:.1f}{_mark(score)}, {top.usd_per_month:,.0f} USD a month"]


def money(found: Assessment) -> list[str]:
    """What the choice costs, in every unit."""
    figures = found.figures
    return [
        f"{figures['usd_per_month'].value:,.0f} USD a month, {short(figures['usd_per_request'].value)} USD a request, "
        f"{short(figures['usd_per_mtok'].value)} USD a million tokens in and out",
        f"{q.joules(figures['energy_j'].value)} a request, {short(figures['co2_kg_per_month'].value)} kg CO2 a month "
        f"({figures['energy_j'].source.split(';')[0]})",
    ]


def _ms(figure: Figure) -> str:
    """Long times in seconds."""
    return q.ms(figure.value) if figure.value < 2000 else f"{q.significant(figure.value / 1e3)} s"


def _mark(figure: Figure) -> str:
    return {"predicted": " pred.", "assumed": " assumed"}.get(figure.kind, "")
