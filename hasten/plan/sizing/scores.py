"""How good a model is: published, or predicted by a law, less what few bits cost."""

from __future__ import annotations

import math
from collections.abc import Mapping

from hasten.plan.sizing import laws
from hasten.plan.sizing.figures import Figure, assumed, predicted
from hasten.plan.sizing.options import SCORE, Option, Ruling
from hasten.plan.sizing.shapes import readable
from hasten.plan.sizing.spec import SizingRequest
from hasten.records import InputError

# Points of a score that a precision usually costs after careful post-training quantization; measure your own.
BITS_COST: Mapping[str, Figure] = {
    "fp32": assumed(0.0, "nothing is rounded"),
    "bf16": assumed(0.0, "below what benchmarks resolve"),
    "fp8": assumed(0.2, "W8A8-FP8 recovers above 99 % on the usual suites (Kurtic et al. 2024)"),
    "int8": assumed(0.5, "W8A8-INT8 loses 1 to 3 % of the points at worst, mostly less (Kurtic et al. 2024)"),
    "int4": assumed(1.5, "W4A16 in groups loses about 1 to 2 points on MMLU, small models more (Kurtic et al. 2024)"),
}
_LOWER_IS_BETTER = ("wer",)


def bits_cost(option: Option, request: SizingRequest) -> Figure:
    """The user's own figure before hasten's."""
    if option.precision in request.bits_cost:
        return assumed(request.bits_cost[option.precision], "given by you")
    return BITS_COST[option.precision]


def of(option: Option, request: SizingRequest) -> dict[str, Figure]:
    """Every score that is published, and MMLU by the Performance Law where it is asked and not published."""
    cost = bits_cost(option, request).value
    found: dict[str, Figure] = {}
    for name, score in option.shape.quality.items():
        lost = cost if name in _LOWER_IS_BETTER else -cost
        source = f"{score.setting}: {score.source}" if score.setting else score.source
        if cost:
            source = f"{source}; {lost:+g} for {option.precision} (assumed)"
        kind = "predicted" if cost and score.kind != "assumed" else score.kind
        found[name] = Figure(score.value + lost, kind, source)
    if "mmlu" not in found and any(b.metric == "mmlu" for b in request.quality):
        found |= _by_law(option, request, cost)
    return found


def _by_law(option: Option, request: SizingRequest, cost: float) -> dict[str, Figure]:
    """MMLU, where the law holds and the training tokens are published or given."""
    tokens = option.shape.tokens_trained or request.tokens_trained
    if tokens is None:
        return {}
    try:
        points = laws.mmlu(option.shape, tokens) - cost
    except InputError:
        return {}
    source = f"Performance Law (Wu and Tang 2024) at {readable(tokens)} tokens, +-{laws.MMLU_ERROR_PT:g} points"
    return {"mmlu": predicted(points, source, error=laws.MMLU_ERROR_PT / points)}


def broken(option: Option, request: SizingRequest, quality: Mapping[str, Figure]) -> Ruling | None:
    """The first bound on a score that does not hold, or that nothing is known of."""
    for bound in request.quality:
        figure = quality.get(bound.metric)
        if figure is None:
            unknown = f"no {bound.metric} of {option.shape.title} is published"
            remedy = "a measurement" + (", or --tokens-trained for the law," if bound.metric == "mmlu" else "")
            return Ruling(option, bound.metric, unknown, math.inf, remedy, SCORE)
        if not bound.holds(figure.value):
            reason = f"{bound.metric} is {figure.value:.1f} ({figure.kind}), {bound.text} is asked"
            miss = abs(figure.value - bound.value) / max(bound.value, 1e-9)
            return Ruling(option, bound.metric, reason, miss, "a larger or better trained model", SCORE)
    return None
