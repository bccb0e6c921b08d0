"""A flat program computed with numpy, operator by operator as its records say: what the engine is held against, and
what lowering can be looked at with where no compiler is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hasten.native.program import (
    Activation,
    Attention,
    Embed,
    Features,
    Int4,
    Int8,
    Linear,
    Norm,
    Normalize,
    Op,
    Pool,
    Program,
)
from hasten.runtimes.native_weights import values

Array = np.ndarray[Any, Any]
_ERF = np.vectorize(math.erf, otypes=[np.float64])
_ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "none": lambda x: x,
    "gelu_erf": lambda x: 0.5 * x * (1.0 + _ERF(x / math.sqrt(2.0))),
    "gelu_tanh": lambda x: 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0.0),
    "silu": lambda x: x / (1.0 + np.exp(-x)),
    "tanh": np.tanh,
}


def computed(
    program: Program, ids: Sequence[int], lengths: Sequence[int], *, types: Sequence[int] = (), features: Any = None
) -> Array:
    """The output's rows in fp64; inputs of integer matrices are rounded as the records say."""
    given = _Given(np.asarray(ids, int), np.asarray(types or [0] * len(ids), int), list(lengths), features)
    buffers: dict[int, Array] = {
        number: np.zeros((given.tokens if buffer.rows == "token" else len(lengths), buffer.width))
        for number, buffer in enumerate(program.buffers)
    }
    for op in program.ops:
        buffers[op.output] = _run(op, program, buffers, given)  # type: ignore[union-attr]
    return buffers[program.output]


class _Given:
    def __init__(self, ids: Array, types: Array, lengths: list[int], features: Any) -> None:
        self.ids, self.types, self.lengths, self.features = ids, types, lengths, features
        self.tokens = sum(lengths)
        ends = np.cumsum(lengths)
        self.spans = [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]
        self.places = np.concatenate([np.arange(length) for length in lengths])


def _run(op: Op, program: Program, buffers: dict[int, Array], given: _Given) -> Array:
    tensors = program.tensors
    if isinstance(op, Features):
        return np.asarray(given.features, np.float64)
    if isinstance(op, Embed):
        found = op.scale * values(tensors[op.words])[given.ids].astype(np.float64)
        if op.positions is not None:
            found = found + values(tensors[op.positions])[given.places + op.first_position]
        return found if op.types is None else found + values(tensors[op.types])[given.types]
    if isinstance(op, Norm):
        total = buffers[op.input] + (0.0 if op.residual is None else buffers[op.residual])
        centred = total - total.mean(axis=-1, keepdims=True)
        found = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + op.eps)
        found = found if op.weight is None else found * values(tensors[op.weight]).ravel()
        return found if op.bias is None else found + values(tensors[op.bias]).ravel()
    if isinstance(op, Linear):
        weight = tensors[op.weight]
        found = _rounded(buffers[op.input], weight) @ values(weight).astype(np.float64).T
        found = found if op.bias is None else found + values(tensors[op.bias]).ravel()
        found = _ACTIVATIONS[op.activation](found)
        return found if op.residual is None else found + buffers[op.residual]
    if isinstance(op, Attention):
        return _attended(op, buffers[op.input], given)
    if isinstance(op, Pool):
        how: Any = {"first": lambda x: x[0], "mean": lambda x: x.mean(axis=0)}[op.kind]
        return np.stack([how(buffers[op.input][span]) for span in given.spans])
    assert isinstance(op, Normalize)
    rows = buffers[op.input]
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), op.eps)


def _rounded(states: Array, weight: Any) -> Array:
    """What a product with this weight makes of its input."""
    x = states.astype(np.float32)
    if isinstance(weight, Int8):
        low = np.minimum(x.min(axis=-1, keepdims=True, initial=0.0), 0.0)
        reach = np.maximum(x.max(axis=-1, keepdims=True, initial=0.0), 0.0) - low
        safe = np.where(reach < 1e-30, np.float32(1), reach)
        inverse = np.float32(255) / safe
        zero = np.rint(-low * inverse)
        codes = np.clip(np.rint(x * inverse) + zero, 0, 255) - zero
        return np.where(reach < 1e-30, 0.0, codes.astype(np.float64) * (safe / np.float32(255)))
    if isinstance(weight, Int4):
        largest = np.abs(x).max(axis=-1, keepdims=True, initial=0.0)
        safe = np.where(largest > 0, largest, np.float32(1))
        return np.rint(x * (np.float32(127) / safe)).astype(np.float64) * (safe / np.float32(127))
    return states


def _attended(op: Attention, mixed: Array, given: _Given) -> Array:
    width = op.heads * op.head_dim
    out = np.zeros((len(mixed), width))
    for span in given.spans:
        query, key, value = (mixed[span, n * width : (n + 1) * width] for n in range(3))
        for head in range(op.heads):
            own = slice(head * op.head_dim, (head + 1) * op.head_dim)
            scores = op.scale * query[:, own] @ key[:, own].T
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            out[span, own] = weights / weights.sum(axis=-1, keepdims=True) @ value[:, own]
    return out
