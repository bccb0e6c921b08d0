"""Small programs of one operator, and weights of every kind, for tests of the kernels."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from native_reference import bf16
from numpy.typing import NDArray

from hasten.native.program import Buffer, Features, Linear, Op, Program, Rows
from hasten.native.tensors import Bf16, Floats, Int4, Int5, Int8, Tensor

F = np.float32
Random = np.random.Generator


def weights(
    random: Random,
    kind: str,
    rows: int,
    columns: int,
    *,
    group: int = 32,
    zeros: bool = False,
    offsets: bool = False,
) -> Tensor:
    """A tensor [rows, columns] of a kind: "fp32", "bf16", "int8", "int5" or "int4"."""
    if kind == "int8":
        codes = random.integers(-128, 128, (rows, columns), dtype=np.int8)
        return Int8(codes, random.uniform(1e-4, 2e-2, rows).astype(F))
    if kind in ("int4", "int5"):
        groups = -(-columns // group)
        packed = random.integers(0, 256, (rows, -(-columns // 2)), dtype=np.uint8)
        scales = random.uniform(1e-3, 2e-1, (rows, groups)).astype(np.float16)
        least = random.uniform(-2, 0.5, (rows, groups)).astype(np.float16) if offsets else None
        if kind == "int5":
            fifths = random.integers(0, 256, (rows, -(-columns // 8)), dtype=np.uint8)
            return Int5(packed, fifths, scales, columns, group, least)
        points = random.integers(0, 16, (rows, groups), dtype=np.uint8) if zeros else None
        return Int4(packed, scales, points, columns, group, least)
    values = (random.standard_normal((rows, columns)) / np.sqrt(max(1, columns))).astype(F)
    return Floats(values) if kind == "fp32" else Bf16(bf16(values))


def one_op(op: Op, *, width: int, out: int, tensors: tuple[Tensor, ...] = (), rows: Rows = "token") -> Program:
    """Features -> buffer 0 [T, width] -> op -> buffer 1 of width ``out``. Buffer 2 is like buffer 1, from Features."""
    buffers = (Buffer(width), Buffer(out, rows), Buffer(out))
    return Program(buffers, tensors, (Features(0), op), 1)


def linear(tensor: Tensor, bias: NDArray[Any] | None = None, *, gated: bool = False, **settings: Any) -> Program:
    """Features -> Linear."""
    columns = tensor.columns if isinstance(tensor, Int4 | Int5) else _matrix(tensor).shape[1]
    rows = len(tensor.values) if isinstance(tensor, Floats | Bf16) else len(tensor.codes)
    tensors = (tensor,) if bias is None else (tensor, Floats(bias.astype(F)))
    op = Linear(0, 1, 0, None if bias is None else 1, gated=gated, **settings)
    return one_op(op, width=columns, out=rows // 2 if gated else rows, tensors=tensors)


def _matrix(tensor: Any) -> NDArray[Any]:
    return tensor.codes if isinstance(tensor, Int8) else tensor.values


def with_words(stored: Any, changes: dict[int, int]) -> Any:
    """A serialized program with some words changed."""
    words = stored.words.copy()
    for place, value in changes.items():
        words[place] = value
    return dataclasses.replace(stored, words=words)
