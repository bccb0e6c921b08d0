"""One replica of an option under load: which rates it bears within the bounds, and the latencies at a rate.

Takes an option and the request, gives a :class:`Replica`. A decoder batches continuously; an encoder on a GPU takes all
who wait whenever it is free, elsewhere one request after the other. Times are those that a user sees: the network's
round trip is in them, except on the user's own device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from hasten.plan.bounds import Bound
from hasten.plan.sizing.batching import Batching, Flow, flow_of, gathering_of, single_of, steps_of
from hasten.plan.sizing.economics import machines_for
from hasten.plan.sizing.figures import Figure, predicted
from hasten.plan.sizing.options import Option
from hasten.plan.sizing.queueing import Service, Vector, gamma_quantile
from hasten.plan.sizing.roofline import Engine, speculated_s
from hasten.plan.sizing.spec import SizingRequest

LATENCIES = ("ttft_ms", "tpot_ms", "latency_ms")
_HALVINGS, _REFINED = 12, 6
_BRIM = 0.98  # of the ceiling: at it, queues never end
_MOST_GATHERED = 64


@dataclass(frozen=True)
class Replica:
    """See :func:`replica_of`. ``most`` sequences fit at once."""

    option: Option
    request: SizingRequest
    engine: Engine
    draft: Engine | None
    most: int

    @property
    def source(self) -> str:
        """What the times are computed from."""
        return "fit to passes that were timed here" if self.engine.measured else "roofline and queue"

    @property
    def names(self) -> tuple[str, ...]:
        """The latencies that such a model has."""
        return LATENCIES[2:] if self.encodes else LATENCIES

    @property
    def encodes(self) -> bool:
        return self.option.shape.kind == "encoder"

    @property
    def gathers(self) -> bool:
        """Does it take several whole requests at once?"""
        return self.encodes and self.option.device.kind == "gpu" and self.most > 1

    @property
    def pooled(self) -> bool:
        """Do all replicas work on one queue, a request after the other?"""
        return self.encodes and not self.gathers and self.option.device.kind != "edge"

    @property
    def network_s(self) -> float:
        return 0.0 if self.option.device.kind == "edge" else self.request.round_trip_ms / 1e3

    @property
    def bounds(self) -> tuple[Bound, ...]:
        """The hard ones on latency."""
        return tuple(b for b in self.request.bounds if b.metric in self.names)

    # ------------------------------------------------------------------ passes

    @cached_property
    def prefill_s(self) -> float:
        """Seconds until a request's first token, with nothing else to do; for an encoder the whole answer."""
        first = self.engine.prefill_s(self.request.input_tokens)
        return first + (self.step_s(1.0) if self.option.shape.kind == "encoder-decoder" else 0.0)

    def step_s(self, running: float) -> float:
        """Seconds for one more token of each running request, at half of their output."""
        request, half = self.request, self.request.output_tokens / 2
        if self.option.shape.kind == "encoder-decoder":
            return self.engine.step_s(sequences=running, context=half, source=request.input_tokens)
        context = half + request.input_tokens
        if self.draft is None:
            return self.engine.step_s(sequences=running, context=context)
        return speculated_s(
            self.engine, self.draft, sequences=running, context=context, drafted=request.drafted,
            acceptance=request.acceptance,
        )  # fmt: skip

    def batch_s(self, count: float) -> float:
        """Seconds for so many requests of an encoder together, all padded to the longest."""
        longest = gamma_quantile(self.request.input_tokens, self.request.length_scv, count / (count + 1.0))
        return self.engine.prefill_s(max(self.request.input_tokens, longest), sequences=count)

    def bare_ms(self) -> dict[str, float]:
        """Of one request of mean length with nothing else on the device."""
        first = self.network_s + self.prefill_s
        if self.encodes:
            return {"latency_ms": 1e3 * first}
        token = self.step_s(1.0)
        whole = first + max(0.0, self.request.output_tokens - 1) * token
        return {"ttft_ms": 1e3 * first, "tpot_ms": 1e3 * token, "latency_ms": 1e3 * whole}

    def at_the_peaks(self) -> Replica:
        """The same at what the hardware could do, which no runtime passes."""
        return replace(self, engine=replace(self.engine, ideal=True), draft=None)

    # ------------------------------------------------------------------ under load

    def flow(self, rate: float, servers: int = 1) -> Flow | None:
        """At ``rate`` requests a second (for ``servers`` behind one queue, of all); ``None`` when they pile up."""
        request = self.request
        if self.gathers:
            return gathering_of(rate, self.batch_s, most=min(self.most, _MOST_GATHERED))
        service = Service(self.prefill_s, request.length_scv)
        if self.encodes:
            return single_of(rate, service, servers)
        return flow_of(rate, Batching(service, self._steps, max(1.0, request.output_tokens)))

    @cached_property
    def _steps(self) -> Vector:
        return steps_of(self.step_s, self.most)

    def latencies(self, flow: Flow) -> dict[str, Figure]:
        """The percentile's times, in ms."""
        late_s = flow.first.quantile(self.request.share)
        return {name: self._figure(self._time_s(flow, name, late_s)) for name in self.names}

    def _time_s(self, flow: Flow, metric: str, late_s: float | None = None) -> float:
        """One of the latencies; ``late_s`` is the percentile of the first token's time where it is known."""
        share, request = self.request.share, self.request
        if metric == "tpot_ms":
            return flow.token_s(share)
        late_s = flow.first.quantile(share) if late_s is None else late_s
        if metric == "ttft_ms" or self.encodes:
            return late_s + self.network_s
        tokens = max(0.0, request.output_tokens - 1)
        long = gamma_quantile(tokens, request.length_scv, share)
        usual = gamma_quantile(tokens, request.length_scv, 0.5)
        first, token = flow.first.quantile(0.5), flow.token_s(0.5)
        # First token, pace and length vary independently: their deviations add like squares.
        late = (late_s - first, usual * (flow.token_s(share) - token), token * (long - usual))
        return self.network_s + first + usual * token + math.hypot(*late)

    # ------------------------------------------------------------------ capacity

    @cached_property
    def most_per_s(self) -> float:
        """The largest rate within memory and the latency bounds; 0 when there is none."""
        return _largest(self.ceiling_per_s, self._bears)

    def fewest(self, rate: float, headroom: float) -> int | None:
        """Replicas for ``rate``, each at most 1 - headroom of its capacity. Encoders that take one request after the
        other share one queue, which takes fewer than as many queues of their own; ``None`` when no number does."""
        if not self.pooled:
            return machines_for(rate, self.most_per_s, headroom) if self.most_per_s > 0 else None
        low = machines_for(rate, 1.0 / self.prefill_s, headroom)
        high = max(16, 4 * low)
        if not self._bears(rate, high):
            return None
        while low < high:  # more servers never make it slower
            middle = (low + high) // 2
            low, high = (low, middle) if self._bears(rate, middle) else (middle + 1, high)
        return low

    @cached_property
    def ceiling_per_s(self) -> float:
        """No rate above it can be borne by one replica, whatever the bounds."""
        request = self.request
        if self.gathers:
            most = float(min(self.most, _MOST_GATHERED))
            return max(n / self.batch_s(n) for n in (1.0, most))
        tokens = max(0.0, request.output_tokens - 1)
        if self.encodes or tokens == 0:
            return 1.0 / self.prefill_s
        return 1.0 / (self.prefill_s + tokens * self.step_s(float(self.most)) / self.most)

    def _bears(self, rate: float, servers: int = 1) -> bool:
        flow = self.flow(rate, servers)
        return flow is not None and all(self._holds(flow, b) for b in self.bounds)

    def _holds(self, flow: Flow, bound: Bound) -> bool:
        """Asks for the share within the bound where that is known directly: a quantile takes ten times as long."""
        if bound.metric == "ttft_ms" or self.encodes:
            return flow.first.within(bound.value / 1e3 - self.network_s) >= self.request.share
        return bound.holds(1e3 * self._time_s(flow, bound.metric))

    def _figure(self, seconds: float) -> Figure:
        return predicted(1e3 * seconds, self.source, error=self.engine.error)


def replica_of(option: Option, request: SizingRequest) -> Replica:
    """One replica; what is measured of the device counts before the roofline."""
    place = option.place(request)
    engine = Engine(place)
    draft = Engine(replace(place, shape=option.draft, draft=None)) if option.draft else None
    return Replica(option, request, engine, draft, place.largest_batch(context=request.context))


def _largest(ceiling: float, bears: Callable[[float], bool]) -> float:
    """The largest rate below ``ceiling`` that is borne, to about a percent; 0 when a four-thousandth is not."""
    if bears(ceiling * _BRIM):
        return ceiling * _BRIM
    high = low = ceiling
    for _ in range(_HALVINGS):
        high, low = low, low / 2
        if bears(low):
            break
    else:
        return 0.0
    for _ in range(_REFINED):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if bears(middle) else (low, middle)
    return low
