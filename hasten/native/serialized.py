"""A program in the form that C++ reads and that a file can hold: 64-bit words and arrays.

Takes a `Program`, gives `Serialized`, and says of one how much of it a call reads. Checks nothing: whoever opens one
checks every word.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from hasten.native.program import Activation, NormKind, Op, PoolKind, Program, Rows
from hasten.native.tensors import Bf16, Floats, Int5, Int8, Tensor

MAGIC, VERSION = 0x48415354454E, 2
_HEADER = 6  # words before the buffers
_OPS = {kind.code: kind for kind in get_args(Op)}
_WHOLE = ("weight", "bias", "frequencies")  # what operators call a tensor of which they read every number


@dataclass(frozen=True, eq=False)
class Serialized:
    """``words`` int64 [W] describe the program, ``arrays`` hold its weights. Files hold them as they are."""

    words: NDArray[np.int64]
    arrays: tuple[NDArray[Any], ...]

    @property
    def output(self) -> int:
        """The buffer that the program ends in."""
        return int(self.words[_HEADER - 1])

    def named(self) -> dict[str, NDArray[Any]]:
        """For a file of named arrays."""
        return {"words": self.words} | {f"data.{n:05d}": array for n, array in enumerate(self.arrays)}

    @staticmethod
    def of(named: Mapping[str, NDArray[Any]]) -> Serialized:
        """Back from a file; what is missing or wrong shows when an engine opens it."""
        words = named.get("words", np.zeros(0, np.int64))
        arrays = [named[name] for name in sorted(named) if name.startswith("data.")]
        flat = np.require(words, np.int64, ["C", "ALIGNED"]).reshape(-1)  # a file may hold them anywhere
        return Serialized(flat, tuple(np.ascontiguousarray(a) for a in arrays))


def serialize(program: Program) -> Serialized:
    """Words: magic, version, counts, output; then buffers, tensors [kind, d0, d1, group, 0, 1 with zero points or 2
    with offsets], operators."""
    words = [MAGIC, VERSION, len(program.buffers), len(program.tensors), len(program.ops), program.output]
    for buffer in program.buffers:
        words += [buffer.width, get_args(Rows).index(buffer.rows)]
    arrays: list[NDArray[Any]] = []
    for tensor in program.tensors:
        words += _tensor(tensor, arrays)
    for op in program.ops:
        fields = [_word(getattr(op, f.name), f.type) for f in dataclasses.fields(op)]
        words += [op.code, len(fields), *fields]
    return Serialized(np.array(words, np.int64), tuple(arrays))


def read_in_whole(stored: Serialized) -> int:
    """Bytes of the weights that a call reads from end to end: not those of tables from which rows are picked alone."""
    words, arrays = stored.words.tolist(), iter(stored.arrays)
    _, _, buffers, tensors, ops, _ = words[:_HEADER]
    place, sizes, whole = _HEADER + 2 * buffers, list[int](), set[int]()
    for _ in range(tensors):
        kind, _, _, _, shift = words[place : place + 5]
        count = 1 if kind in (Floats.code, Bf16.code) else 2 + (kind == Int5.code) + (shift > 0)
        sizes.append(sum(next(arrays).nbytes for _ in range(count)))
        place += 5
    for _ in range(ops):
        code, count = words[place : place + 2]
        said = zip(dataclasses.fields(_OPS[code]), words[place + 2 : place + 2 + count], strict=True)
        whole |= {value for field, value in said if field.name in _WHOLE}
        place += 2 + count
    return sum(size for number, size in enumerate(sizes) if number in whole)


def _tensor(tensor: Tensor, arrays: list[NDArray[Any]]) -> list[int]:
    if isinstance(tensor, Floats | Bf16):
        kind = np.float32 if isinstance(tensor, Floats) else np.uint16
        values = np.ascontiguousarray(tensor.values, kind)
        rows, columns = values.shape if values.ndim == 2 else (1, values.size)
        arrays.append(values)
        return [tensor.code, rows, columns, 0, 0]
    if isinstance(tensor, Int8):
        arrays += [np.ascontiguousarray(tensor.codes, np.int8), np.ascontiguousarray(tensor.scales, np.float32)]
        return [tensor.code, *tensor.codes.shape, 0, 0]
    zeros = None if isinstance(tensor, Int5) else tensor.zeros
    arrays.append(np.ascontiguousarray(tensor.codes, np.uint8))
    if isinstance(tensor, Int5):
        arrays.append(np.ascontiguousarray(tensor.fifths, np.uint8))
    arrays.append(np.ascontiguousarray(tensor.scales, np.float16))
    if zeros is not None:
        arrays.append(np.ascontiguousarray(zeros, np.uint8))
    if tensor.offsets is not None:
        arrays.append(np.ascontiguousarray(tensor.offsets, np.float16))
    shift = 1 if zeros is not None else 2 if tensor.offsets is not None else 0
    return [tensor.code, len(tensor.codes), tensor.columns, tensor.group, shift]


_CHOICES: dict[str, tuple[str, ...]] = {
    "Activation": get_args(Activation),
    "NormKind": get_args(NormKind),
    "PoolKind": get_args(PoolKind),
}


def _word(value: int | float | str | None, kind: Any) -> int:
    """None is -1, a choice its place, a float the bits of an fp64."""
    if value is None:
        return -1
    if isinstance(value, str):
        return _CHOICES[kind].index(value)
    if kind == "float":
        return int(struct.unpack("<q", struct.pack("<d", float(value)))[0])
    return int(value)
