"""What the readers of every layout share: what is known of a matrix, and how a refusal reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hasten.records import InputError


@dataclass(frozen=True, slots=True)
class Quantized:
    """A stored matrix: ``config`` is the checkpoint's ``quantization_config``, ``name`` the module's, ``kind`` its
    class, such as ``"Linear"``."""

    config: Mapping[str, Any]
    name: str
    kind: str


def unreadable(got: str, expected: str) -> InputError:
    return InputError(
        f"{got} is not something that hasten can read", expected=expected,
        remedy="use the original checkpoint in 16 or 32 bits, and let hasten quantize it",
    )  # fmt: skip
