"""What a program should give: every operator in numpy, products of integers exactly, the rest in fp64.

Takes a `Program` and a ragged batch, gives fp64 rows (fp32 where a product with int8 weights ends, whose rounding is
part of its definition). Slow and plain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.native.program import (
    Activate,
    Add,
    Attention,
    Embed,
    Features,
    Foretell,
    HeadNorm,
    Linear,
    Norm,
    Normalize,
    Pool,
    Program,
    Rotary,
)
from hasten.native.tensors import Bf16, Floats, Int4, Int5, Int8, Tensor

F = np.float32
_ERF = np.vectorize(math.erf, otypes=[np.float64])


def bf16(values: NDArray[Any]) -> NDArray[np.uint16]:
    """The nearest bfloat16's bits."""
    bits = np.ascontiguousarray(values, F).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(F)


def codes_u8(x: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Codes [R, K], scales [R], zero points [R], as `tensors.Int8` says."""
    with np.errstate(all="ignore"):
        low = np.minimum(np.float32(0), np.nan_to_num(x.min(axis=1, initial=0), nan=0))
        size = (np.maximum(F(0), np.nan_to_num(x.max(axis=1, initial=0), nan=0)) - low).astype(F)
        bad = ~np.isfinite(x).all(axis=1) | ~np.isfinite(size)
        nothing = bad | (size < F(1e-30))
        inverse = np.where(nothing, F(0), F(255) / size).astype(F)
        zero = np.where(nothing, F(0), np.rint(-low * inverse)).astype(F)
        codes = np.clip(np.rint(x * inverse[:, None]) + zero[:, None], 0, 255)
        codes = np.where(nothing[:, None], 0, codes)
        scales = np.where(bad, F(np.nan), np.where(nothing, F(0), size / F(255))).astype(F)
    return codes.astype(np.int64), scales, zero.astype(np.int64)


def codes_s8(x: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Codes [R, K] and scales [R] of one group, as `tensors.Int4` says."""
    with np.errstate(all="ignore"):
        bad = ~np.isfinite(x).all(axis=1) | ~np.isfinite(x.max(axis=1, initial=0) - x.min(axis=1, initial=0))
        size = np.abs(np.where(bad[:, None], 0, x)).max(axis=1, initial=0).astype(F)
        nothing = bad | (size < F(1e-30))
        inverse = np.where(nothing, F(0), F(127) / size).astype(F)
        codes = np.where(nothing[:, None], 0, np.clip(np.rint(x * inverse[:, None]), -127, 127))
        scales = np.where(bad, F(np.nan), np.where(nothing, F(0), size / F(127))).astype(F)
    return codes.astype(np.int64), scales


def unpacked(tensor: Int4 | Int5) -> NDArray[np.int64]:
    """Codes [N, K] of 4 or 5 bits."""
    both = np.stack([tensor.codes & 15, tensor.codes >> 4], axis=2).reshape(len(tensor.codes), -1)
    found = both[:, : tensor.columns].astype(np.int64)
    if isinstance(tensor, Int5):
        found += 16 * np.unpackbits(tensor.fifths, axis=1, bitorder="little")[:, : tensor.columns].astype(np.int64)
    return found


def plain(tensor: Tensor) -> NDArray[Any]:
    """The weights as numbers."""
    if isinstance(tensor, Floats):
        return tensor.values
    if isinstance(tensor, Bf16):
        return from_bf16(tensor.values)
    if isinstance(tensor, Int8):
        return tensor.codes.astype(F) * tensor.scales[:, None]
    spread = np.repeat(np.arange(tensor.scales.shape[1]), tensor.group)[: tensor.columns]
    scales = tensor.scales.astype(np.float64)[:, spread]
    if tensor.offsets is not None:
        return unpacked(tensor) * scales + tensor.offsets.astype(np.float64)[:, spread]
    zeros = np.full(tensor.scales.shape, 16 if isinstance(tensor, Int5) else 8)
    if isinstance(tensor, Int4) and tensor.zeros is not None:
        zeros = tensor.zeros.astype(np.int64)
    return (unpacked(tensor) - zeros[:, spread]) * scales


def product(x: NDArray[Any], tensor: Tensor) -> NDArray[Any]:
    """x [R, K] W^T without bias."""
    with np.errstate(all="ignore"):
        if isinstance(tensor, Int8):
            codes, scales, zeros = codes_u8(x.astype(F))
            sums = codes @ tensor.codes.astype(np.int64).T - zeros[:, None] * tensor.codes.astype(np.int64).sum(axis=1)
            return (sums.astype(F) * (scales[:, None] * tensor.scales)).astype(F)
        if isinstance(tensor, Int4 | Int5):
            starts = range(0, tensor.columns, tensor.group)
            parts = [codes_s8(x[:, at : at + tensor.group].astype(F)) for at in starts]
            if not parts:
                return np.zeros((len(x), len(tensor.codes)))
            rounded = np.concatenate([codes * steps[:, None].astype(np.float64) for codes, steps in parts], axis=1)
            return np.asarray(rounded @ plain(tensor).T)
        return x.astype(np.float64) @ plain(tensor).astype(np.float64).T


def activation(x: NDArray[Any], kind: str) -> NDArray[Any]:
    wide = x.astype(np.float64)
    with np.errstate(all="ignore"):
        if kind == "gelu_erf":
            return 0.5 * wide * (1 + _ERF(wide / math.sqrt(2)))
        if kind == "gelu_tanh":
            return 0.5 * wide * (1 + np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)))
        if kind == "relu":
            return np.maximum(wide, 0)
        if kind == "silu":
            return wide / (1 + np.exp(-wide))
        return np.tanh(wide) if kind == "tanh" else x


def capped(x: NDArray[Any], cap: float) -> NDArray[Any]:
    return np.asarray(cap * np.tanh(x / cap)) if cap else x


class _Run:
    def __init__(self, program: Program, ids: Any, lengths: Sequence[int], types: Any, features: Any) -> None:
        self.program, self.ids, self.types, self.features = program, ids, types, features
        self.starts = np.concatenate([[0], np.cumsum(lengths)])
        self.places = np.concatenate([np.arange(n) for n in lengths])
        self.rows: dict[int, NDArray[Any]] = {}

    def tensor(self, number: int | None) -> NDArray[Any] | None:
        return None if number is None else plain(self.program.tensors[number])

    def do(self, op: Any) -> None:
        {
            Features: self.take, Embed: self.embed, Norm: self.norm, Linear: self.linear, Attention: self.attend,
            Pool: self.pool, Normalize: self.normalize, Activate: self.activate, Add: self.add, Rotary: self.turn,
            HeadNorm: self.norm_heads, Foretell: self.foretell,
        }[type(op)](op)  # fmt: skip

    def take(self, op: Features) -> None:
        self.rows[op.output] = np.array(self.features, F)

    def embed(self, op: Embed) -> None:
        words = self.tensor(op.words)
        assert words is not None
        x = words[self.ids] * op.scale
        if (positions := self.tensor(op.positions)) is not None:
            x = x + positions[self.places + op.first_position]
        if (types := self.tensor(op.types)) is not None:
            x = x + types[np.zeros_like(self.ids) if self.types is None else self.types]
        self.rows[op.output] = x

    def norm(self, op: Norm) -> None:
        x = self.rows[op.input].astype(np.float64)
        if op.residual is not None:
            x = x + self.rows[op.residual]
        if op.total is not None:
            self.rows[op.total] = x
        off = x - x.mean(axis=1, keepdims=True) if op.kind == "layer" else x
        y = off / np.sqrt((off * off).mean(axis=1, keepdims=True) + op.eps)
        if (weight := self.tensor(op.weight)) is not None:
            y = y * (weight.reshape(-1) + (op.kind == "rms_plus_one"))
        if (bias := self.tensor(op.bias)) is not None:
            y = y + bias.reshape(-1)
        self.rows[op.output] = y

    def linear(self, op: Linear) -> None:
        weight = self.program.tensors[op.weight]
        y = product(self.rows[op.input], weight)
        if (bias := self.tensor(op.bias)) is not None:
            y = (y + bias.reshape(-1)).astype(y.dtype)
        if op.gated:
            half = y.shape[1] // 2
            y = activation(y[:, :half], op.activation) * y[:, half:]
        else:
            y = activation(y, op.activation)
        y = capped(y, op.cap)
        self.rows[op.output] = y if op.residual is None else y + self.rows[op.residual]

    def attend(self, op: Attention) -> None:
        x, d = self.rows[op.input].astype(np.float64), op.head_dim
        out = np.zeros((len(x), op.heads * d))
        for begin, end in zip(self.starts, self.starts[1:], strict=False):
            q, k, v = np.split(x[begin:end], [op.heads * d, (op.heads + op.kv_heads) * d], axis=1)
            place = np.arange(end - begin)
            apart = place[:, None] - place[None, :]
            hidden = (apart < 0) & op.causal | (np.abs(apart) >= op.window if op.window else False)
            for head in range(op.heads):
                kv = head // (op.heads // op.kv_heads)
                scores = q[:, head * d : (head + 1) * d] @ k[:, kv * d : (kv + 1) * d].T * op.scale
                scores = np.where(hidden, -np.inf, capped(scores, op.cap))
                weights = np.exp(scores - scores.max(axis=1, keepdims=True))
                weights /= weights.sum(axis=1, keepdims=True)
                out[begin:end, head * d : (head + 1) * d] = weights @ v[:, kv * d : (kv + 1) * d]
        self.rows[op.output] = out

    def pool(self, op: Pool) -> None:
        parts = [self.rows[op.input][begin:end] for begin, end in zip(self.starts, self.starts[1:], strict=False)]
        ways = {
            "first": lambda p: p[0],
            "last": lambda p: p[-1],
            "mean": lambda p: p.mean(0),
            "max": lambda p: p.max(0),
        }
        self.rows[op.output] = np.stack([ways[op.kind](part) for part in parts])

    def normalize(self, op: Normalize) -> None:
        x = self.rows[op.input].astype(np.float64)
        self.rows[op.output] = x / np.maximum(np.sqrt((x * x).sum(axis=1, keepdims=True)), op.eps)

    def activate(self, op: Activate) -> None:
        self.rows[op.output] = activation(self.rows[op.input], op.activation)

    def add(self, op: Add) -> None:
        self.rows[op.output] = self.rows[op.input] + self.rows[op.other]

    def norm_heads(self, op: HeadNorm) -> None:
        x, weight = self.rows[op.input].astype(np.float64), self.tensor(op.weight)
        assert weight is not None
        for head in range(op.first, op.first + op.heads):
            part = x[:, head * op.head_dim : (head + 1) * op.head_dim]
            off = part - part.mean(axis=1, keepdims=True) if op.kind == "layer" else part
            size = np.sqrt((off * off).mean(axis=1, keepdims=True) + op.eps)
            x[:, head * op.head_dim : (head + 1) * op.head_dim] = (
                off / size * (weight.reshape(-1) + (op.kind == "rms_plus_one"))
            )
        self.rows[op.input] = x

    def foretell(self, op: Foretell) -> None:
        y = product(self.rows[op.input], self.program.tensors[op.weight])
        if (bias := self.tensor(op.bias)) is not None:
            y = y + bias.reshape(-1)
        y = capped(y.astype(np.float64), op.cap)
        most = y.max(axis=1, keepdims=True)
        said = y - most - np.log(np.exp(y - most).sum(axis=1, keepdims=True))
        spans = zip(self.starts, self.starts[1:], strict=False)
        following = np.concatenate([np.roll(self.ids[begin:end], -1) for begin, end in spans])
        self.rows[op.output] = np.stack([said[np.arange(len(said)), following], y.argmax(axis=1)], axis=1)

    def turn(self, op: Rotary) -> None:
        x = self.rows[op.input].astype(np.float64)
        frequencies = self.tensor(op.frequencies)
        assert frequencies is not None
        angles = self.places[:, None].astype(F) * frequencies.reshape(-1)
        c, s, half = np.cos(angles) * op.factor, np.sin(angles) * op.factor, frequencies.size
        for head in range(op.heads + op.kv_heads):
            at = head * op.head_dim
            a, b = x[:, at : at + half].copy(), x[:, at + half : at + 2 * half].copy()
            x[:, at : at + half], x[:, at + half : at + 2 * half] = a * c - b * s, b * c + a * s
        self.rows[op.input] = x


def expected(
    program: Program, ids: Any = None, *, lengths: Sequence[int], types: Any = None, features: Any = None
) -> NDArray[Any]:
    """The rows of the program's output."""
    run = _Run(program, None if ids is None else np.asarray(ids), lengths, types, features)
    for op in program.ops:
        run.do(op)
    return run.rows[program.output]
