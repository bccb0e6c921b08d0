"""From the baseline to the chosen recipe, step by step: what each one bought and cost.

Takes the verdict and the trials, gives rows and sentences. Only what was measured in this run is in them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from hasten.records import Figures, Interval, Measured, Trial, Verdict
from hasten.report import quantities as q
from hasten.report import view


@dataclass(frozen=True, slots=True)
class Step:
    """One stage on the way from the baseline to the chosen recipe; ``spent_s`` is the time of its trials."""

    name: str
    label: str
    figures: Figures
    speedup: float | None
    quality_drop_pt: Interval | None
    spent_s: float | None


def steps(verdict: Verdict, trials: Sequence[Trial]) -> list[Step]:
    """Baseline -> tuned baseline -> + each pass -> the chosen runtime in fp32 -> chosen, as far as measured."""
    path = [_side_step("as it is", verdict.baseline, verdict, trials)]
    if verdict.tuned_baseline.recipe_id != verdict.baseline.recipe_id:
        path.append(_side_step("torch, tuned", verdict.tuned_baseline, verdict, trials))
    chosen = verdict.chosen
    if chosen is None or chosen.recipe_id == verdict.tuned_baseline.recipe_id:
        return path
    path += _pass_steps(chosen, trials)
    fp32 = _runtime_in_fp32(chosen, trials)
    if fp32 is not None:
        spent_s = _spent(trials, fp32.recipe_id)
        name = f"{chosen.recipe['runtime']['kind']}, fp32"
        speedup = _times(fp32.speedup)
        path.append(Step(name, fp32.label, fp32.figures, speedup, fp32.quality_drop_pt, spent_s))
    path.append(_side_step(view.sides(verdict)[-1][0], chosen, verdict, trials))
    return path


def _pass_steps(chosen: Measured, trials: Sequence[Trial]) -> list[Step]:
    """The chosen passes one after the other, on the original's runtime."""
    passes = chosen.recipe["passes"]
    plain = {(json.dumps(t.recipe["passes"]), t.recipe["runtime"]["kind"]): t for t in view.reached(trials)}
    found = []
    for count in range(1, len(passes) + 1):
        trial = plain.get((json.dumps(passes[:count]), "torch"))
        if trial is not None:
            spent_s = _spent(trials, trial.recipe_id)
            name = f"+ {trial.label.split(' + ')[count - 1]}"
            found.append(Step(name, trial.label, trial.figures, _times(trial.speedup), trial.quality_drop_pt, spent_s))
    return found


def bought(path: Sequence[Step]) -> list[str]:
    """What every step from the second on changed in quality, speed and size, in words."""
    said = []
    for before, after in pairwise(path):
        facts = []
        a, b = before.quality_drop_pt, after.quality_drop_pt
        if b is not None:
            gained = (a.estimate if a else 0.0) - b.estimate
            facts.append(f"{'bought' if gained >= 0 else 'cost'} {abs(gained):.1f} pt")
        if before.speedup and after.speedup:
            facts.append(f"{after.speedup / before.speedup:.1f}x as fast")
        if before.figures.bytes and after.figures.bytes:
            facts.append(f"{after.figures.bytes / before.figures.bytes:.0%} of the bytes")
        if after.spent_s:
            facts.append(f"took {q.duration(after.spent_s)}")
        said.append(f"{after.name}: {', '.join(facts)}")
    return said


def _runtime_in_fp32(chosen: Measured, trials: Sequence[Trial]) -> Trial | None:
    """The fastest fp32 form of the chosen shape on the chosen runtime: what the runtime alone bought."""
    kind, passes = chosen.recipe["runtime"]["kind"], json.dumps(chosen.recipe["passes"])
    for trial in view.reached(trials):
        runtime = trial.recipe["runtime"]
        fp32 = runtime.get("precision") == "fp32" and json.dumps(trial.recipe["passes"]) == passes
        if fp32 and runtime["kind"] == kind != "torch" and trial.recipe_id != chosen.recipe_id:
            return trial
    return None


def _side_step(name: str, side: Measured, verdict: Verdict, trials: Sequence[Trial]) -> Step:
    own = next((t for t in view.reached(trials) if t.recipe_id == side.recipe_id), None)
    if verdict.chosen is not None and side.recipe_id == verdict.chosen.recipe_id:
        speedup, drop = _times(verdict.speedup), verdict.quality_drop
    elif side.recipe_id == verdict.baseline.recipe_id:
        speedup, drop = 1.0, None
    else:
        speedup, drop = (_times(own.speedup), own.quality_drop_pt) if own else (None, None)
        speedup = speedup or _p50_ratio(verdict.baseline.figures, side.figures)
    return Step(name, side.label, side.figures, speedup, drop, _spent(trials, side.recipe_id))


def _times(interval: Interval | None) -> float | None:
    return None if interval is None else interval.estimate


def _p50_ratio(baseline: Figures, other: Figures) -> float | None:
    if baseline.latency_ms is None or other.latency_ms is None:
        return None
    return baseline.latency_ms.p50 / other.latency_ms.p50


def _spent(trials: Sequence[Trial], recipe_id: str) -> float | None:
    spent = [t.elapsed_s for t in trials if t.recipe_id == recipe_id]
    return sum(spent) if spent else None
