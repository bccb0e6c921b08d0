"""What a report shows, chosen and ordered once for the terminal and the page.

Takes the verdict and the trials, gives rows. Knows no markup and no drawing. A trial
at the preflight stage measured a two-layer copy, so its figures are never shown as
the model's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from hasten.plan.ladder import left_out
from hasten.records import Figures, Latency, Measured, Prediction, Quality, Trial, Verdict, Workload
from hasten.report import quantities as q

_STAGES = ("preflight", "screen", "contest", "final")
_HEADS = {
    "met": "Meets the budget",
    "not_met": "Does not meet the budget",
    "baseline_best": "Nothing beats your baseline",
}


@dataclass(frozen=True, slots=True)
class Headline:
    """The outcome in a few words, and the rest of the verdict's sentence."""

    head: str
    rest: str


@dataclass(frozen=True, slots=True)
class Line:
    """One figure of every side: name, then baseline, tuned baseline, chosen as far as there are."""

    name: str
    cells: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the cost model predicted of a candidate, and what was then measured."""

    label: str
    prediction: Prediction
    measured: Figures


def headline(verdict: Verdict) -> Headline:
    """Split ``"MEETS THE BUDGET: 5.1x..."`` after its capitals; without them, use the outcome's words."""
    found = re.match(r"([A-Z][A-Z' ]+[A-Z])[:.,]\s+(.+)", verdict.sentence, re.DOTALL)
    if found is None:
        return Headline(_HEADS[verdict.outcome], verdict.sentence)
    rest = found[2][0].upper() + found[2][1:]
    return Headline(found[1].capitalize(), rest)


def sides(verdict: Verdict) -> list[tuple[str, Measured]]:
    """Columns of the comparison. A tuned baseline that is the baseline itself is not repeated."""
    columns = [("baseline", verdict.baseline)]
    chosen = verdict.chosen
    ids = {verdict.baseline.recipe_id, chosen.recipe_id if chosen else None}
    if verdict.tuned_baseline.recipe_id not in ids:
        columns.append(("tuned baseline", verdict.tuned_baseline))
    if chosen is not None:
        columns.append(("closest miss" if verdict.outcome == "not_met" else "chosen", chosen))
    return columns


def comparison(verdict: Verdict) -> list[Line]:
    """Figures of all sides, leaving out what no side has."""
    figures = [side.figures for _, side in sides(verdict)]
    metric = verdict.baseline.figures.quality

    def line(name: str, cell: Callable[[Figures], str]) -> Line:
        return Line(name, tuple(cell(f) for f in figures))

    lines = [
        line("latency p50", lambda f: _percentile(f.latency_ms, "p50")),
        line("latency p95", lambda f: _percentile(f.latency_ms, "p95")),
        line("latency p99", lambda f: _percentile(f.latency_ms, "p99")),
        line("p50 with tokenizer", lambda f: _percentile(f.end_to_end_ms, "p50")),
        line("first token p50", lambda f: _percentile(f.ttft_ms, "p50")),
        line("first token p95", lambda f: _percentile(f.ttft_ms, "p95")),
        line("per further token p50", lambda f: _percentile(f.tpot_ms, "p50")),
        line("per further token p95", lambda f: _percentile(f.tpot_ms, "p95")),
        line("throughput", lambda f: q.rate(f.throughput_per_s)),
        line("tokens written", lambda f: q.rate(f.tokens_per_s)),
        line("size on disk", lambda f: q.size(f.bytes)),
        line("peak memory", lambda f: q.size(f.peak_rss_bytes)),
        line("load time", lambda f: q.duration(f.load_s)),
        line("first call", lambda f: q.ms(f.first_call_ms)),
        line(metric_name(metric.metric) if metric else "quality", lambda f: q.quality(f.quality)),
        *_other_metrics(figures),
        line("energy per request", lambda f: q.energy(f.energy)),
        line("precision that ran", lambda f: f.precision_ran or q.MISSING),
        line("threads", lambda f: str(f.threads or q.MISSING)),
    ]
    return [line for line in lines if any(cell != q.MISSING for cell in line.cells)]


def _percentile(latency: Latency | None, name: Literal["p50", "p95", "p99"]) -> str:
    return q.ms(None if latency is None else getattr(latency, name))


def _other_metrics(figures: Sequence[Figures]) -> list[Line]:
    names = dict.fromkeys(name for f in figures if f.quality for name in f.quality.others)

    def cell(name: str, quality: Quality | None) -> str:
        return q.MISSING if quality is None or name not in quality.others else f"{quality.others[name]:.2f}"

    return [Line(metric_name(name), tuple(cell(name, f.quality) for f in figures)) for name in names]


def metric_name(metric: str) -> str:
    return {"mcc": "MCC", "macro_f1": "macro F1"}.get(metric, metric.replace("_", " "))


def rejected(trials: Sequence[Trial]) -> list[Trial]:
    """Every candidate that ended rejected, with its last reason, in the order in which they fell."""
    last = {trial.recipe_id: trial for trial in trials}
    return [trial for trial in last.values() if trial.status == "rejected"]


def fallen(verdict: Verdict, trials: Sequence[Trial]) -> list[Trial]:
    """Every candidate that did not come through: the rejected ones, then shapes that were rehearsed and left at that,
    as trials that say why."""
    left = left_out(trials, budget=verdict.budget)
    return [
        *rejected(trials), *(replace(t, status="rejected", rejected_at="left out", reason=reason) for t, reason in left)
    ]  # fmt: skip


def reached(trials: Sequence[Trial]) -> list[Trial]:
    """The furthest stage of every candidate that was measured in full and passed, fastest first."""
    latest: dict[str, Trial] = {}
    for trial in trials:
        known = latest.get(trial.recipe_id)
        if known is None or _STAGES.index(trial.stage) >= _STAGES.index(known.stage):
            latest[trial.recipe_id] = trial
    passed = [t for t in latest.values() if t.status == "ok" and t.stage != "preflight"]
    return sorted(passed, key=lambda t: t.figures.latency_ms.p50 if t.figures.latency_ms else float("inf"))


def forecasts(trials: Sequence[Trial]) -> list[Forecast]:
    """Candidates with a prediction that were measured in full later."""
    first: dict[str, Prediction] = {}
    for trial in trials:
        if trial.prediction is not None:
            first.setdefault(trial.recipe_id, trial.prediction)
    return [
        Forecast(t.label, first[t.recipe_id], t.figures)
        for t in reached(trials)
        if t.recipe_id in first and t.figures.latency_ms is not None
    ]


def method(verdict: Verdict, workload: Workload | None) -> list[str]:
    """How it was measured, in sentences."""
    host, splits, latency = verdict.host, verdict.splits, verdict.baseline.figures.latency_ms
    cores = _count(len(host.cores_used), "core") + f" ({', '.join(map(str, host.cores_used))})"
    load = f" in batches of {workload.batch} at concurrency {workload.concurrency}" if workload else ""
    timed = f" over {latency.n:,} timed requests" if latency else ""
    written = (
        " A request is a whole answer, always of the same number of tokens; the first token's time is that of reading "
        "the prompt, a further one's the mean over the rest of its answer."
    )
    whole = written if verdict.baseline.figures.ttft_ms else ""
    return [
        f"Each side ran in a process of its own on {cores} with {_count(host.threads, 'thread')}. Baseline "
        f"and candidate took turns (A B A B) on the same requests{load}: what slows the machine slows both.",
        "Requests are rows of your data at their real lengths. Latency is that of the session on tokenized "
        f"input{timed}; warm-up and building are left out. Speed-up is the ratio of the two p50 latencies.{whole}",
        f"Quality was compared row by row on {splits.test:,} test rows that took no part in calibration or "
        "in choosing. Intervals are 95 % bootstrap intervals.",
        "Before any candidate was timed, its outputs were compared with the original's on varied lengths and "
        "batch sizes; one that differed was rejected.",
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
