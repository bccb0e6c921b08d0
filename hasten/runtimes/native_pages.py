"""Which blocks of a cache the sequences of one batch have: taken as they are needed, freed all together.

Takes how many tokens each sequence goes on with, gives where they stand and where their keys and values go. Knows
neither models nor engines.

Legend: S sequences, T tokens of this call, W blocks of the longest sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hasten.native.cache import Cache, CacheKind

BLOCK = 16
# Room for so many tokens more in each sequence from the start: memory that nobody writes to costs nothing.
_AHEAD = 512
_GROWTH = 1.5
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """int32: positions and slots [T], tables [S, W]; where `Engine.forward` puts the tokens of a call."""

    positions: Array
    slots: Array
    tables: Array


class Pages:
    """``layers``: key heads and their width of each layer."""

    def __init__(self, layers: Sequence[tuple[int, int]], *, kind: CacheKind) -> None:
        self._layers, self._kind = layers, kind
        self.clear()

    def clear(self) -> None:
        """No sequences, and no memory."""
        self.cache = Cache.empty(self._layers, blocks=1, block_size=BLOCK, kind=self._kind)
        self.lengths = np.zeros(0, np.int64)
        self._blocks, self._used = 1, 0
        self._tables = np.zeros((0, 0), np.int32)

    def begin(self, lengths: Array) -> None:
        """Sequences without tokens yet, with room for prompts of these lengths [S] and for what follows."""
        self.clear()
        self.lengths = np.zeros(len(lengths), np.int64)
        self._tables = np.zeros((len(lengths), 0), np.int32)
        self._grow(int((-(-(lengths + _AHEAD) // BLOCK)).sum()))

    def take(self, rows: Array, counts: Array) -> Places:
        """The next ``counts`` [R] tokens, at least one each, of the sequences ``rows`` [R], each of them once."""
        before = self.lengths[rows]
        after = before + counts
        self._reserve(rows, -(-before // BLOCK), -(-after // BLOCK))
        self.lengths[rows] = after
        own = np.repeat(np.arange(len(rows)), counts)
        positions = np.arange(len(own)) + np.repeat(after - np.cumsum(counts), counts)
        tables = self._tables[rows]
        slots = tables[own, positions // BLOCK] * BLOCK + positions % BLOCK
        return Places(positions.astype(np.int32), slots.astype(np.int32), tables)

    def take_one(self) -> Places:
        """The next token of every sequence: what `take` gives for it, in fewer steps, since text is written so."""
        before = self.lengths
        blocks, within = np.divmod(before, BLOCK)
        if not within.all():
            self._reserve(np.arange(len(before)), blocks + (within > 0), blocks + 1)
        slots = self._tables[np.arange(len(before)), blocks] * BLOCK + within
        self.lengths = before + 1
        return Places(before.astype(np.int32), slots.astype(np.int32), self._tables)

    def _reserve(self, rows: Array, have: Array, need: Array) -> None:
        if not (need > have).any():
            return
        widest = int(need.max())
        if widest > self._tables.shape[1]:
            more = max(widest, int(_GROWTH * self._tables.shape[1])) - self._tables.shape[1]
            self._tables = np.pad(self._tables, ((0, 0), (0, more)))
        for row, first, last in zip(rows, have, need, strict=True):
            count = int(last - first)
            self._tables[row, first:last] = np.arange(self._used, self._used + count)
            self._used += count
        if self._used > self._blocks:
            self._grow(max(self._used, int(_GROWTH * self._blocks)))

    def _grow(self, blocks: int) -> None:
        self.cache, self._blocks = self.cache.grown(blocks), blocks
