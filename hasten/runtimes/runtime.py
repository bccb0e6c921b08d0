"""What every runtime module offers, and what it hands back.

A runtime is a module with four functions and one frozen config; nothing here imports
a runtime library. Shapes: B rows, L tokens, C outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hasten.records import Config

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Probe:
    """Is the runtime here? ``reason`` and ``remedy`` are set when it is not."""

    available: bool
    version: str | None = None
    reason: str | None = None
    remedy: str | None = None
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export left in its folder, and what it needs of a host."""

    files: tuple[str, ...]
    input_names: tuple[str, ...]
    instructions: tuple[str, ...]
    notes: tuple[str, ...] = ()


def is_tokens(array: Array) -> bool:
    """Is the second axis free? Token ids and masks are int64 [B, L]; images have one size."""
    return array.ndim == 2 and array.dtype.kind == "i"


class Session(Protocol):
    """An opened model. ``precision`` is what really runs, not what was asked for."""

    input_names: tuple[str, ...]
    precision: str

    def run(self, arrays: Arrays) -> Array:
        """Token ids int64 [B, L] or pixels float32 [B, 3, H, W] by name -> float32 [B, C], of every token [B, L, C]."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


class Runtime(Protocol):
    """The functions of a runtime module."""

    def probe(self) -> Probe:
        """Never raises; an absent runtime is a finding."""
        ...

    def space(self, *, instructions: frozenset[str], threads: int) -> tuple[Config, ...]:
        """Configs worth trying on this host, the most promising first."""
        ...

    def export(
        self, wrapper: Any, config: Any, *, calibration: Sequence[Arrays], folder: Path, cache: Path
    ) -> Exported:
        """Write the model files into ``folder``; ``cache`` shares work between configs. Raises Rejected."""
        ...

    def open(self, folder: Path, config: Any, *, threads: int, cores: tuple[int, ...]) -> Session:
        """Open what :meth:`export` wrote."""
        ...
