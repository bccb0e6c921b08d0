"""Sessions of the native engine: padded requests made ragged, images cut into patches, outputs put back in place.

Takes an open engine and the facts of a bundle, gives a session. Knows no files.

Legend: B rows, L tokens of the longest, T real tokens of all rows, C outputs, P patches of an image, E own tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.records import InputError
from hasten.runtimes.runtime import Array, Arrays

if TYPE_CHECKING:
    from hasten.native.engine import Engine

FORMAT = 1
TEXTS = ("input_ids", "attention_mask", "token_type_ids")
IMAGES = ("pixel_values",)
PRECISIONS = ("fp32", "bf16", "int8-dynamic", "int5", "int4")
_MOST_PIXELS, _MOST_OWN = 1 << 24, 16


@dataclass(frozen=True, slots=True)
class Facts:
    """``inputs`` of texts or images; ``picture``: channels, height, width, a patch's height and width, own tokens."""

    inputs: tuple[str, ...]
    per_token: bool
    precision: str
    picture: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT, "inputs": list(self.inputs), "per_token": self.per_token, "precision": self.precision,
            "picture": list(self.picture),
        }  # fmt: skip


def facts_of(read: Any) -> Facts:
    """From JSON. Raises ValueError for anything but what :meth:`Facts.to_dict` gives."""
    given: Mapping[str, Any] = read if isinstance(read, Mapping) else {}
    inputs, picture = (_listed(given.get(name)) for name in ("inputs", "picture"))
    texts = set(TEXTS[:2]) <= set(map(str, inputs)) <= set(TEXTS) and not picture
    fine = (
        given.get("format") == FORMAT
        and (texts or (inputs == list(IMAGES) and _is_picture(picture)))
        and isinstance(given.get("per_token"), bool)
        and given.get("precision") in PRECISIONS
    )
    if not fine:
        raise ValueError(f"its facts do not say what goes in and comes out (format {given.get('format')!r})")
    return Facts(tuple(map(str, inputs)), bool(given["per_token"]), str(given["precision"]), tuple(picture))


def _listed(found: Any) -> list[Any]:
    return found if isinstance(found, list) else []


def _is_picture(sizes: list[Any]) -> bool:
    if len(sizes) != 6 or not all(type(size) is int and 0 < size <= _MOST_PIXELS for size in sizes):
        return False
    channels, height, width, high, wide, own = sizes
    small = channels * height * width <= _MOST_PIXELS and own <= _MOST_OWN
    return bool(small and height % high == width % wide == 0)


class NativeSession:
    """Of texts. Safe to call from several threads, which wait for each other. Raises ValueError where the program
    gives other rows than the facts say."""

    def __init__(self, engine: Engine, facts: Facts) -> None:
        self._engine, self._per_token = engine, facts.per_token
        self.input_names, self.precision = facts.inputs, facts.precision
        self._typed = TEXTS[2] in facts.inputs
        rows = len(engine.run(np.zeros(3, np.int32), lengths=np.array([1, 2], np.int32)))
        if rows != (3 if facts.per_token else 2):
            raise ValueError(f"the program gives {rows} rows for 2 texts of 3 tokens, which is not what its facts say")

    def run(self, arrays: Arrays) -> Array:
        ids = arrays[TEXTS[0]]
        real, lengths = _real(arrays[TEXTS[1]])
        types = flat(arrays[TEXTS[2]], real) if self._typed else None
        made: Array = self._engine.run(flat(ids, real), lengths=lengths, types=types)
        if not self._per_token:
            return made
        if real is None:
            return made.reshape(*ids.shape, -1)
        output = np.zeros((*ids.shape, made.shape[1]), np.float32)
        output[real] = made
        return output

    def close(self) -> None:
        self._engine.close()


class NativeImageSession:
    """Of images of one size; safe to call from several threads, which wait for each other."""

    def __init__(self, engine: Engine, facts: Facts) -> None:
        self._engine = engine
        self.input_names, self.precision = facts.inputs, facts.precision
        channels, height, width, self._high, self._wide, self._own = facts.picture
        self._shape = (channels, height, width)
        self._grid = (height // self._high, width // self._wide)
        self._ids = np.minimum(np.arange(self._own + self._grid[0] * self._grid[1], dtype=np.int32), self._own)
        if len(self.run({IMAGES[0]: np.zeros((1, *self._shape), np.float32)})) != 1:
            raise ValueError("the program gives more than a row for an image")

    def run(self, arrays: Arrays) -> Array:
        pixels = arrays[IMAGES[0]]
        if pixels.shape[1:] != self._shape:
            raise InputError(
                f"images of shape {pixels.shape[1:]}", expected=f"{self._shape}", remedy="scale them as the bundle says"
            )
        count, (rows, columns) = len(pixels), self._grid
        cut = pixels.reshape(count, self._shape[0], rows, self._high, columns, self._wide).transpose(0, 2, 4, 1, 3, 5)
        features = np.zeros((count, len(self._ids), self._shape[0] * self._high * self._wide), np.float32)
        features[:, self._own :] = cut.reshape(count, rows * columns, -1)
        lengths = np.full(count, len(self._ids), np.int32)
        flat = features.reshape(-1, features.shape[-1])
        made: Array = self._engine.run(np.tile(self._ids, count), lengths=lengths, features=flat)
        return made

    def close(self) -> None:
        self._engine.close()


def session_of(engine: Engine, facts: Facts) -> NativeSession | NativeImageSession:
    return NativeImageSession(engine, facts) if facts.picture else NativeSession(engine, facts)


def _real(mask: Array) -> tuple[Array | None, Array]:
    """Where tokens are real [B, L] (``None``: everywhere), and how many a row has [B]. A text without any is a token of
    padding."""
    real = mask != 0
    if real.all():
        return None, np.full(len(mask), mask.shape[1], np.int32)
    lengths = real.sum(axis=1, dtype=np.int32)
    if not lengths.all():
        real[lengths == 0, 0] = True
        lengths = np.maximum(lengths, 1)
    return real, lengths


def flat(numbers: Array, real: Array | None) -> Array:
    """int64 [B, L] as int32 [T]; what does not fit is an id that no table has, and must not become another one's."""
    chosen = numbers.ravel() if real is None else numbers[real]
    found: Array = chosen.clip(-1, np.iinfo(np.int32).max).astype(np.int32)
    return found
