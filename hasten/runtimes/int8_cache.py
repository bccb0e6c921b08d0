"""A cache in 8 bits for transformers' models: what was read takes little more than a quarter of its bytes in fp32.

Takes the keys and values that an attention computes, gives those of all tokens back in their own precision. Every
token's vector in a head is a group with a scale and a lowest value of its own, x ~ low + scale * code with
scale = (max - min) / 255: round to nearest, asymmetric, as FlexGen compresses caches (Sheng et al. 2023). No number
moves by more than half a scale. What one call brings is looked at unrounded by that call: only the past is rounded.

Legend: B rows, A heads, T tokens, D width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DummyLayer,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

from hasten.records import Rejected

_LEVELS = 255


@dataclass(frozen=True, slots=True)
class Rounded:
    """``codes`` uint8 [B, A, T, D]; ``scale`` and ``low`` float32 [B, A, T, 1]."""

    codes: Tensor
    scale: Tensor
    low: Tensor

    def joined(self, more: Rounded, *, last: int | None = None) -> Rounded:
        """With the tokens of ``more`` behind, of all of them the ``last`` ones."""
        both = zip((self.codes, self.scale, self.low), (more.codes, more.scale, more.low), strict=True)
        return Rounded(*(torch.cat(pair, dim=2) for pair in both)).ending(last)

    def ending(self, last: int | None) -> Rounded:
        """The ``last`` tokens alone; ``None``: all."""
        if last is None or self.codes.shape[2] <= last:
            return self
        start = self.codes.shape[2] - last
        # Copies: a view would hold the memory of all that is left out.
        return Rounded(*(part[:, :, start:].clone() for part in (self.codes, self.scale, self.low)))

    def before(self, states: Tensor) -> Tensor:
        """The numbers [B, A, T, D] with ``states`` of later tokens behind them, in the precision of these."""
        rows, heads, past, size = self.codes.shape
        whole = torch.empty(rows, heads, past + states.shape[2], size)
        torch.mul(self.codes, self.scale, out=whole[:, :, :past])
        whole[:, :, :past] += self.low
        whole[:, :, past:] = states
        return whole.to(states.dtype)


def rounded(states: Tensor) -> Rounded:
    """``states`` [B, A, T, D] in 8 bits. What is not finite stays so, or a broken model would look sound."""
    values = states.float()
    low, high = torch.aminmax(values, dim=-1, keepdim=True)
    scale = (high - low) / _LEVELS
    codes = ((values - low) / torch.where(scale == 0, 1.0, scale)).round_().clamp_(0, _LEVELS)
    return Rounded(codes.to(torch.uint8), scale, low)


def _none_of(states: Tensor) -> Tensor:
    """[B, A, 0, D]; a slice would hold the memory of the rest."""
    rows, heads, _, size = states.shape
    return states.new_empty(rows, heads, 0, size)


class Int8Layer(CacheLayerMixin):  # type: ignore[misc]  # transformers' types are unknown here
    """The keys and values of one layer; what attends to an encoder reads them as ``keys`` and ``values``."""

    is_sliding = False

    def __init__(self) -> None:
        self.is_initialized = False
        self._read = 0
        self._kept: tuple[Rounded, Rounded] | None = None
        self._nothing: tuple[Tensor, Tensor] | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Remember their precision: [B, A, 0, D] each."""
        self._nothing = (_none_of(key_states), _none_of(value_states))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """[B, A, T, D] each, of the tokens of this call -> of all that are kept, and these."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._read += key_states.shape[2]
        if self._kept is None:
            self._kept = (rounded(key_states).ending(self._most), rounded(value_states).ending(self._most))
            return key_states, value_states
        keys, values = self._kept
        whole = keys.before(key_states), values.before(value_states)
        self._kept = (
            keys.joined(rounded(key_states), last=self._most), values.joined(rounded(value_states), last=self._most),
        )  # fmt: skip
        return whole

    @property
    def keys(self) -> Tensor:
        return self._all(0)

    @property
    def values(self) -> Tensor:
        return self._all(1)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._read + query_length, 0

    def get_seq_length(self) -> int:
        return self._read

    def get_max_length(self) -> int:
        return -1

    @property
    def _most(self) -> int | None:
        """Tokens that are kept; ``None``: all."""
        return None

    def _all(self, part: int) -> Tensor:
        assert self._kept is not None, "nothing was read yet"
        assert self._nothing is not None
        return self._kept[part].before(self._nothing[part])


class Int8WindowLayer(Int8Layer):
    """A layer whose tokens see no more than ``window`` tokens, themselves included: the rest is forgotten."""

    is_sliding = True

    def __init__(self, window: int) -> None:
        super().__init__()
        self._window = window

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        kept = min(self._read, self._window - 1)
        return kept + query_length, self._read - kept

    def get_max_length(self) -> int:
        return self._window

    @property
    def _most(self) -> int:
        return self._window - 1


def int8_cache(config: Any | None) -> Cache:
    """An empty cache of the layers that ``config`` names; without one it grows with the layers that use it.

    Raises Rejected for layers that keep something else than keys and values of tokens.
    """
    if config is None:
        return Cache(layer_class_to_replicate=Int8Layer)
    return Cache(layers=[_in_8_bits(layer) for layer in DynamicCache(config=config).layers])


def _in_8_bits(layer: Any) -> Any:
    if type(layer) is DynamicSlidingWindowLayer:
        return Int8WindowLayer(layer.sliding_window)
    if type(layer) is DynamicLayer:
        return Int8Layer()
    if type(layer) is DummyLayer:  # it keeps nothing
        return layer
    raise Rejected("open", f"kv_cache int8: a {type(layer).__name__} keeps more than keys and values")
