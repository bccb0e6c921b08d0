"""How long a pass takes on a device: prefill, decode step, encoding; with batches, precisions, several devices.

Takes a :class:`~hasten.plan.sizing.memory.Place`; gives seconds. Where the device was measured (its ``fits``), the fit
is asked instead of the roofline.

Sources: roofline (Williams et al. 2009); t_prefill = max(2 N S B / (eta P), W / BW), t_decode = max(2 N B / (eta P),
(W + KV) / BW) + overhead (Pope et al. 2022); speculation (Leviathan et al. 2023); ring all-reduce 2 (n - 1) / n bytes,
two in a layer (Shoeybi et al. 2019).

Legend: B sequences, S tokens of one, N weights, W their bytes, n devices.
"""

from __future__ import annotations

from dataclasses import dataclass

from hasten.plan.sizing.figures import assumed
from hasten.plan.sizing.fit import Work
from hasten.plan.sizing.hardware import Reach
from hasten.plan.sizing.memory import KEPT_BITS, WEIGHT_BITS, Place
from hasten.plan.sizing.shapes import ModelShape

_WHOLE, _NONE = assumed(1.0, "the peak itself"), assumed(0.0, "nothing besides")
IDEAL = Reach(_WHOLE, _WHOLE, _NONE, _NONE)
LINK_LATENCY_S = assumed(10e-6, "one small all-reduce between devices of a machine")
DEFAULT_LINK = assumed(25e9, "PCIe 4.0 x16, one direction, as reached")
# A roofline with assumed shares of the peaks is right to about this share.
ROOFLINE_ERROR = 0.5


@dataclass(frozen=True, slots=True)
class Engine:
    """The passes of a model at a place. ``ideal``: at the peaks themselves, which no runtime passes."""

    place: Place
    ideal: bool = False

    @property
    def measured(self) -> bool:
        """Were such passes timed on this device? Fits are of encoders."""
        return self.place.shape.kind == "encoder" and self.place.precision in self.place.device.fits

    @property
    def error(self) -> float:
        """The share by which a pass may be off."""
        return self.place.device.fits[self.place.precision].error if self.measured else ROOFLINE_ERROR

    def prefill_s(self, tokens: float, *, sequences: float = 1.0) -> float:
        """Read ``tokens`` of each sequence at once; for an encoder this is all there is."""
        return self._seconds(work_of(self.place.shape, tokens=tokens, sequences=sequences), rows=tokens * sequences)

    def step_s(self, *, sequences: float, context: float, source: float = 0.0, tokens: int = 1) -> float:
        """One pass over ``tokens`` more of each sequence, each ``context`` long; ``source`` is what an encoder read."""
        work = step_of(self.place.shape, sequences, context, self.place.cache_bits / 8, source=source, tokens=tokens)
        return self._seconds(work, rows=sequences * tokens)

    def _seconds(self, work: Work, *, rows: float) -> float:
        place = self.place
        if self.measured and not self.ideal:
            return place.device.fits[place.precision].seconds(work)
        reach, n = IDEAL if self.ideal else place.device.reached, place.devices
        compute = work.ops / (reach.compute.value * place.device.ops(place.precision).value * n)
        kept = KEPT_BITS[place.precision]
        read = (work.weights * WEIGHT_BITS[place.precision] + work.head * kept) / 8 + work.cache_bytes
        memory = read / (reach.bandwidth.value * place.device.bandwidth_bytes_s.value * n)
        rest = reach.pass_s.value + reach.layer_s.value * work.layers
        return max(compute, memory) + rest + self._reduce_s(rows, work.layers)

    def _reduce_s(self, rows: float, layers: float) -> float:
        """Two all-reduces of the rows' hidden states in every layer, in 16 bits."""
        n = self.place.devices
        if n == 1 or self.ideal:
            return 0.0
        link = (self.place.device.link_bytes_s or DEFAULT_LINK).value
        moved = 2.0 * (n - 1) / n * rows * self.place.shape.hidden * 2
        return 2.0 * layers * (moved / link + LINK_LATENCY_S.value)


def work_of(shape: ModelShape, *, tokens: float, sequences: float) -> Work:
    """A pass over whole sequences; of an encoder-decoder by its encoder."""
    rows = tokens * sequences
    layers = shape.stacks[0][0]
    causal = 0.5 if shape.kind == "decoder" else 1.0
    scores = layers * shape.heads * sequences * tokens * shape.visible(tokens) * causal
    head = shape.head_weights if shape.kind == "decoder" else 0.0
    attention, ffn = layers * shape.attention_weights, layers * shape.ffn_weights
    computed = attention + ffn * max(1, shape.experts_used)
    return Work(
        calls=1.0, layers=layers, ops=2.0 * (rows * computed + sequences * head) + 4.0 * scores * shape.width,
        weights=attention + ffn * max(1, shape.experts) * shape.experts_touched(rows), scores=scores,
        values=rows * shape.hidden * layers, head=head,
    )  # fmt: skip


def step_of(
    shape: ModelShape, sequences: float, context: float, cache_bytes: float, *, source: float = 0.0, tokens: int = 1
) -> Work:
    """One pass of the decoder over ``tokens`` new ones of each sequence; ``cache_bytes`` of one number in the cache."""
    rows = sequences * tokens
    layers, attentions = shape.stacks[-1]
    seen = shape.visible(context) + (source if attentions > 1 else 0.0)
    scores = layers * shape.heads * rows * seen
    attention, ffn = attentions * layers * shape.attention_weights, layers * shape.ffn_weights
    computed = attention + ffn * max(1, shape.experts_used) + shape.head_weights
    return Work(
        calls=1.0, layers=layers, ops=2.0 * rows * computed + 4.0 * scores * shape.width,
        weights=attention + ffn * max(1, shape.experts) * shape.experts_touched(rows), scores=scores,
        values=rows * shape.hidden * layers, head=shape.head_weights,
        cache_bytes=shape.cached_values(context + source) * sequences * cache_bytes,
    )  # fmt: skip


def tokens_a_step(acceptance: float, drafted: int) -> float:
    """Tokens that a verified draft of so many yields, each accepted with that chance: (1 - a^(g+1)) / (1 - a)."""
    if acceptance >= 1.0:
        return drafted + 1.0
    return (1.0 - acceptance ** (drafted + 1)) / (1.0 - acceptance)


def speculated_s(
    target: Engine, draft: Engine, *, sequences: float, context: float, drafted: int, acceptance: float
) -> float:
    """Seconds a token with a draft model: the draft's steps and one verification, over what they yield."""
    step = target.step_s(sequences=sequences, context=context, tokens=drafted + 1)
    drafts = drafted * draft.step_s(sequences=sequences, context=context)
    return (step + drafts) / tokens_a_step(acceptance, drafted)
