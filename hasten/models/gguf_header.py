"""The header of a GGUF file: what it says of itself, held against the file before anything is built from it.

Takes a path, gives the metadata and the shape of every tensor; reads no weights. Every count and length in the file is
compared with the bytes that are left before it is believed, so a hostile file costs a refusal and no memory. Layout:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; sizes of block formats: the ``gguf`` package.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten.records import InputError, MissingDependency

_VERSIONS = (2, 3)
_TEXT, _ARRAY = 8, 9
# Number of a fixed-size value type -> its struct letter
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MOST_ENTRIES = 1 << 16
_MOST_TENSORS = 1 << 20
_LONGEST_TEXT = 1 << 24
_SMALL_ARRAY = 1024
_LONGEST_ARRAY = 1 << 22  # more tokens than any vocabulary has
_MOST_DIMENSIONS = 4
_LARGEST_ALIGNMENT = 1 << 20


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """``metadata``: long arrays and arrays of texts as their length; ``shapes``: a tensor's sizes, fastest first."""

    metadata: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    @property
    def weights(self) -> int:
        """Numbers in all tensors together."""
        return sum(map(math.prod, self.shapes.values()))

    def of_model(self, name: str) -> Any:
        """The architecture's own entry ``name``, such as ``block_count``; ``None`` without one."""
        return self.metadata.get(f"{self.architecture}.{name}")


def read_header(path: Path) -> GgufHeader:
    """Raises InputError for a file that is no whole GGUF file, MissingDependency without the ``gguf`` package."""
    blocks = _block_sizes()
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data).header(blocks)
    except (OSError, ValueError, struct.error) as error:  # an empty file, too, and text that is none
        raise InputError(
            f"{path} is not a whole GGUF file: {error}", expected="GGUF version 2 or 3, little endian",
            remedy="download it again, from a source that you trust",
        ) from error  # fmt: skip


def _block_sizes() -> dict[int, tuple[int, int]]:
    """Type number -> (numbers in a block, bytes of a block)."""
    try:
        from gguf import GGML_QUANT_SIZES
    except ImportError as error:
        raise MissingDependency("gguf", extra="gguf") from error
    return {int(kind): (int(count), int(size)) for kind, (count, size) in GGML_QUANT_SIZES.items()}


class _Reader:
    """A place in the file. Raises ValueError for what does not fit."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.size, self.place = data, len(data), 0

    def header(self, blocks: Mapping[int, tuple[int, int]]) -> GgufHeader:
        if self._take(4) != b"GGUF":
            raise ValueError("it does not start with GGUF")
        version = self._number("I")
        if version not in _VERSIONS:
            raise ValueError(f"its version is {version}")
        tensors, entries = self._number("Q"), self._number("Q")
        if tensors > _MOST_TENSORS or entries > _MOST_ENTRIES:
            raise ValueError(f"it claims {tensors} tensors and {entries} entries")
        metadata: dict[str, Any] = {}
        for _ in range(entries):
            name = self._text()
            if name in metadata:
                raise ValueError(f"it has two entries {name[:80]!r}")
            metadata[name] = self._value(self._number("I"))
        return GgufHeader(metadata, self._tensors(tensors, blocks, _alignment(metadata)))

    def _tensors(self, count: int, blocks: Mapping[int, tuple[int, int]], alignment: int) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        ends, sum_bytes = [], 0
        for _ in range(count):
            name, dimensions = self._text(), self._number("I")
            if name in shapes or not 1 <= dimensions <= _MOST_DIMENSIONS:
                raise ValueError(f"the tensor {name[:80]!r} is there twice or has {dimensions} dimensions")
            shape = tuple(self._number("Q") for _ in range(dimensions))
            kind, offset = self._number("I"), self._number("Q")
            if kind not in blocks:
                raise ValueError(f"{name[:80]} is of the unknown type {kind}")
            inside, size = blocks[kind]
            if min(shape) < 1 or shape[0] % inside or offset % alignment:
                raise ValueError(f"{name[:80]} of {shape} at {offset} does not consist of whole blocks")
            shapes[name] = shape
            own = math.prod(shape) // inside * size
            sum_bytes += own
            ends.append((offset + own, name))
        start = -(-self.place // alignment) * alignment
        last, name = max(ends, default=(0, ""))
        if start + last > self.size:
            raise ValueError(f"{name[:80]} ends at byte {start + last} of {self.size}")
        if start + sum_bytes > self.size:  # unpacked, one byte would count as often as it is named
            raise ValueError(f"its tensors overlap: they are {sum_bytes} bytes of {self.size - start}")
        return shapes

    def _value(self, kind: int) -> Any:
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind])
        if kind == _TEXT:
            return self._text()
        if kind != _ARRAY:
            raise ValueError(f"it has a value of the unknown type {kind}")
        inner, count = self._number("I"), self._number("Q")
        if count > _LONGEST_ARRAY:
            raise ValueError(f"it has an array of {count} values")
        if inner in _NUMBERS:
            size = count * struct.calcsize("<" + _NUMBERS[inner])
            if count <= _SMALL_ARRAY:
                return list(struct.unpack(f"<{count}{_NUMBERS[inner]}", self._take(size)))
            self._skip(size)
            return count
        if inner != _TEXT or count * 8 > self.size - self.place:
            raise ValueError(f"it has an array of {count} values of type {inner}")
        for _ in range(count):
            self._skip(self._number("Q"))
        return count

    def _text(self) -> str:
        length = self._number("Q")
        if length > _LONGEST_TEXT:
            raise ValueError(f"it has a text of {length} bytes")
        return self._take(length).decode("utf-8")

    def _number(self, letter: str) -> Any:
        return struct.unpack("<" + letter, self._take(struct.calcsize("<" + letter)))[0]

    def _take(self, count: int) -> bytes:
        start = self.place
        self._skip(count)
        return self.data[start : self.place]

    def _skip(self, count: int) -> None:
        if count > self.size - self.place:
            raise ValueError(f"it ends at byte {self.size}, in the middle of its header")
        self.place += count


def _alignment(metadata: Mapping[str, Any]) -> int:
    found = metadata.get("general.alignment", 32)
    if not isinstance(found, int) or not 1 <= found <= _LARGEST_ALIGNMENT or found & (found - 1):
        raise ValueError(f"its alignment is {found!r}")
    return found
