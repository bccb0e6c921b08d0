"""How long each stage's duel lasts, and its times as one list.

Takes nothing but numbers. A stage that decides more gets more rounds of fresh processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hasten.measure.duel import Round


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a duel lasts: rounds of fresh processes, and about how many seconds of timed calls a round."""

    rounds: int
    seconds: float
    turns: int = 12

    def per_turn(self, expected_ms: float) -> int:
        """Requests a side per turn, for calls of ``expected_ms`` on both sides together."""
        return int(np.clip(self.seconds * 1e3 / max(expected_ms, 1e-3) / self.turns, 3, 25))


TIMINGS = {"screen": Timing(1, 4.0), "contest": Timing(2, 6.0), "final": Timing(3, 8.0)}


def side(rounds: Sequence[Round], name: str) -> list[float]:
    """All times of one side of a duel, in ms."""
    return [t for one in rounds for turn in getattr(one, name) for t in turn]
