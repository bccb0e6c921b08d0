"""What a model needs in memory, and the largest batch and context that fit.

Takes a :class:`Place` (a shape in a precision on devices); gives bytes. Weights in few bits keep embeddings, head and
norms in 16, as the usual formats do.

Source: KV cache 2 L n_kv d_h S B bytes (Pope et al. 2022, "Efficiently Scaling Transformer Inference"), with grouped
heads (Ainslie et al. 2023) and windows; group scales as in GPTQ and GGUF files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from hasten.plan.sizing.figures import Figure, predicted
from hasten.plan.sizing.hardware import Device
from hasten.plan.sizing.shapes import ModelShape

# Bits a weight takes with its scales: int4 in groups of 32 carries a 16-bit scale for each.
WEIGHT_BITS: Mapping[str, float] = {"fp32": 32.0, "bf16": 16.0, "fp8": 8.0, "int8": 8.0, "int4": 4.5}
KEPT_BITS: Mapping[str, float] = {"fp32": 32.0, "bf16": 16.0, "fp8": 16.0, "int8": 16.0, "int4": 16.0}
_ACTIVATION_BYTES: Mapping[str, int] = {"fp32": 4}
_LIVE = 4  # activations of a layer that are held at once: input, residual, and what is being computed
_MOST = 2**40


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on all devices of a replica together."""

    weights: Figure
    cache: Figure
    activations: Figure
    runtime: Figure

    @property
    def total(self) -> float:
        return self.weights.value + self.cache.value + self.activations.value + self.runtime.value


@dataclass(frozen=True, slots=True)
class Place:
    """A model in a precision on ``devices`` that work together, with a model that drafts for it where there is one;
    ``limit_bytes`` is a bound of the user's on all of it."""

    shape: ModelShape
    device: Device
    precision: str
    devices: int = 1
    cache_bits: float = 16.0
    draft: ModelShape | None = None
    limit_bytes: float = math.inf

    @property
    def room_bytes(self) -> float:
        """What may be used."""
        return min(self.device.usable_bytes * self.devices, self.limit_bytes)

    def needed(self, *, context: float, sequences: float) -> Memory:
        """To serve ``sequences`` at ``context`` tokens; one sequence at a time is read in."""
        shape, fit = self.shape, self.device.memory_fits.get(self.precision)
        tokens = context * (sequences if shape.kind == "encoder" else 1)
        activations = activation_bytes(shape, self.precision, tokens=tokens, sequences=sequences)
        if fit is not None and shape.kind == "encoder":
            return _fitted(fit.base, fit.file * file_bytes(shape, self.precision), fit.activations * activations.value)
        weights, cache = weights_bytes(shape, self.precision), self._cache(shape, context, sequences)
        if self.draft is not None:
            more = weights_bytes(self.draft, self.precision).value
            weights = replace(weights, value=weights.value + more, source=f"{weights.source}, with the draft's")
            cache = replace(cache, value=cache.value + self._cache(self.draft, context, sequences).value)
        own = self.device.runtime
        return Memory(weights, cache, activations, replace(own, value=own.value * self.devices))

    def _cache(self, shape: ModelShape, context: float, sequences: float) -> Figure:
        """Devices beyond the key heads hold copies of them."""
        found = cache_bytes(shape, context=context, sequences=sequences, bits=self.cache_bits)
        return replace(found, value=found.value * max(1.0, self.devices / shape.key_heads))

    def largest_batch(self, *, context: float) -> int:
        """Sequences at ``context`` that fit at once; 0 when not even one does."""
        return _largest(lambda n: self.needed(context=context, sequences=n).total, self.room_bytes)

    def largest_context(self) -> int:
        """Tokens that one sequence may have, up to what the model can take; 0 when not even one fits."""
        found = _largest(lambda n: self.needed(context=n, sequences=1).total, self.room_bytes)
        return min(found, self.shape.max_context) if self.shape.max_context else found


def weights_bytes(shape: ModelShape, precision: str) -> Figure:
    """Of the stored model."""
    few = shape.layer_weights
    value = (few * WEIGHT_BITS[precision] + max(0.0, shape.total - few) * KEPT_BITS[precision]) / 8
    return predicted(value, f"{WEIGHT_BITS[precision]:g} bits a weight in the layers, {KEPT_BITS[precision]:g} outside")


def file_bytes(shape: ModelShape, precision: str) -> float:
    """What an exporter writes that rounds the layers' matrices and leaves the tables in fp32, as for ONNX Runtime."""
    few = shape.layer_weights
    return (few * WEIGHT_BITS[precision] + max(0.0, shape.total - few) * 32.0) / 8


def cache_bytes(shape: ModelShape, *, context: float, sequences: float, bits: float) -> Figure:
    """Keys and values of ``sequences`` at ``context`` tokens; encoders keep none."""
    if shape.kind == "encoder":
        return predicted(0.0, "an encoder keeps nothing between requests")
    value = shape.cached_values(context) * sequences * bits / 8
    return predicted(value, f"2 x layers x {shape.key_heads} key heads x {shape.width} x tokens x {bits:g} bits")


def activation_bytes(shape: ModelShape, precision: str, *, tokens: float, sequences: float) -> Figure:
    """What one pass over ``tokens`` (of all sequences together) holds at once, with the logits of the last ones."""
    size = _ACTIVATION_BYTES.get(precision, 2)
    widest = max(shape.ffn * (2 if shape.gated else 1), (shape.heads + 2 * shape.key_heads) * shape.width)
    layer = tokens * (_LIVE * shape.hidden + widest) * size
    logits = 0.0 if shape.kind == "encoder" else sequences * shape.vocab * 4
    return predicted(layer + logits, "one layer's activations and the logits; attention scores are never stored whole")


def _fitted(base: float, file: float, activations: float) -> Memory:
    how = "fit to processes that were measured here"
    nothing = predicted(0.0, "an encoder keeps nothing between requests")
    return Memory(predicted(file, how), nothing, predicted(activations, how), predicted(base, how))


def _largest(bytes_at: Callable[[int], float], room: float) -> int:
    """The largest whole number whose bytes fit; they grow with it."""
    first = bytes_at(1)
    if first > room:
        return 0
    step = bytes_at(2) - first
    near = int(min((room - first) / step, _MOST / 2)) if step > 0 else 1  # they mostly grow evenly
    low = near if near > 1 and bytes_at(near) <= room else 1
    high = low + 1
    while high < _MOST and bytes_at(high) <= room:
        low, high = high, high + 2 * (high - low)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if bytes_at(middle) <= room else (low, middle)
    return low
