"""Keys and values of earlier tokens, which the caller of `Engine.forward` owns.

Takes counts of heads and blocks, gives arrays in slots; knows neither sequences nor who holds which block. Token j of a
sequence lies in slot ``table[j // block_size] * block_size + j % block_size``.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hasten.errors import InputError

CacheKind = Literal["fp32", "bf16", "int8"]
# Where processes fork, each goes on with pages of its own.
_OWN = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)
_TYPES: dict[CacheKind, Any] = {"fp32": np.float32, "bf16": np.uint16, "int8": np.int8}


@dataclass(frozen=True, eq=False)
class Cache:
    """For each layer keys and values [slots, kv_heads, head_dim] (bf16 as its bits); for int8 also fp32 scales
    [slots, kv_heads] of each, otherwise empty arrays."""

    kind: CacheKind
    block_size: int
    keys: tuple[NDArray[Any], ...]
    values: tuple[NDArray[Any], ...]
    key_scales: tuple[NDArray[np.float32], ...]
    value_scales: tuple[NDArray[np.float32], ...]

    @property
    def slots(self) -> int:
        return len(self.keys[0]) if self.keys else 0

    @cached_property
    def places(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Where keys, values and their scales of each layer lie, and their bytes. Raises InputError for arrays that
        nothing can be written to in one piece."""
        layers = zip(self.keys, self.values, self.key_scales, self.value_scales, strict=True)
        parts = [part for layer in layers for part in layer]
        if any(not part.flags.c_contiguous or not part.flags.writeable for part in parts):
            raise InputError("a cache of strided or frozen arrays", expected="plain ones", remedy="use Cache.empty")
        addresses = np.array([part.ctypes.data for part in parts], np.uint64)
        return addresses, np.array([part.nbytes for part in parts], np.int64)

    @property
    def nbytes(self) -> int:
        parts = (*self.keys, *self.values, *self.key_scales, *self.value_scales)
        return sum(part.nbytes for part in parts)

    def grown(self, blocks: int) -> Cache:
        """A cache of so many blocks, at least as many as there are; what was kept lies in the first ones."""

        def longer(parts: tuple[NDArray[Any], ...], slots: int) -> tuple[NDArray[Any], ...]:
            made = tuple(_zeros((slots, *part.shape[1:]), part.dtype) for part in parts)
            for new, old in zip(made, parts, strict=True):
                new[: len(old)] = old
            return made

        slots = blocks * self.block_size
        scaled = slots if self.kind == "int8" else 0
        return Cache(
            self.kind, self.block_size, longer(self.keys, slots), longer(self.values, slots),
            longer(self.key_scales, scaled), longer(self.value_scales, scaled),
        )  # fmt: skip

    @staticmethod
    def empty(
        layers: Sequence[tuple[int, int]], *, blocks: int, block_size: int = 16, kind: CacheKind = "bf16"
    ) -> Cache:
        """``layers``: key heads and their width of each layer."""
        slots = blocks * block_size
        scaled = slots if kind == "int8" else 0

        def numbers() -> tuple[NDArray[Any], ...]:
            return tuple(_zeros((slots, heads, width), _TYPES[kind]) for heads, width in layers)

        def scales() -> tuple[NDArray[np.float32], ...]:
            return tuple(_zeros((scaled, heads), np.float32) for heads, _ in layers)

        return Cache(kind, block_size, numbers(), numbers(), scales(), scales())


def _zeros(shape: tuple[int, ...], kind: Any) -> NDArray[Any]:
    """Pages of their own, which take no memory before they are touched: numpy's zeros come from malloc, which after a
    while takes arrays of this size out of what was freed and clears them. Raises MemoryError."""
    size = math.prod(shape) * np.dtype(kind).itemsize
    if size == 0:
        return np.zeros(shape, kind)
    try:
        pages = mmap.mmap(-1, size, flags=_OWN) if _OWN else mmap.mmap(-1, size)
    except OSError as error:
        raise MemoryError(f"no room for a cache of {size} bytes") from error
    return np.frombuffer(pages, kind).reshape(shape)
