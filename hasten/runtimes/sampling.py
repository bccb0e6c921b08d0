"""From logits to the next token of every row: the likeliest, or one that is drawn.

Every row draws from a generator of its own, so that what it writes depends on the seed and its number alone, not on
how many rows there are. The order is temperature, top-k, top-p (Holtzman et al. 2020), as transformers has it.

Legend: B rows, V tokens of the vocabulary.
"""

from __future__ import annotations

import numpy as np

from hasten.records import Rejected
from hasten.runtimes.runtime import Array


class Sampler:
    """Logits float32 [B, V] -> ids int64 [B]. Temperature 0 is greedy: ties go to the smaller id."""

    def __init__(self, *, rows: int, temperature: float, top_k: int, top_p: float, seed: int) -> None:
        self._temperature, self._top_k, self._top_p = temperature, top_k, top_p
        self._draws = [np.random.default_rng((seed, row)) for row in range(rows if temperature > 0 else 0)]

    def __call__(self, logits: Array) -> Array:
        """Raises Rejected when a row's largest logit is not a finite number."""
        likeliest = logits.argmax(axis=-1)  # of a NaN, too: it counts as the largest
        if not np.isfinite(logits[np.arange(len(logits)), likeliest]).all():
            raise Rejected("generate", "the logits of the next token are not finite numbers")
        if self._temperature == 0:
            return np.asarray(likeliest, dtype=np.int64)
        drawn = [self._draw(row, rng.random()) for row, rng in zip(logits, self._draws, strict=True)]
        return np.asarray(drawn, dtype=np.int64)

    def _draw(self, logits: Array, share: float) -> int:
        """The token in which ``share`` of the allowed probability, likeliest tokens first, is reached."""
        scaled = (logits.astype(np.float64) - float(logits.max())) / self._temperature
        count = min(self._top_k or scaled.size, scaled.size)
        allowed = np.argpartition(-scaled, count - 1)[:count] if count < scaled.size else np.arange(scaled.size)
        allowed = allowed[np.lexsort((allowed, -scaled[allowed]))]
        reached = np.cumsum(np.exp(scaled[allowed]))
        reached /= reached[-1]
        kept = int(np.searchsorted(reached, self._top_p)) + 1 if self._top_p < 1 else reached.size
        last = min(kept, reached.size) - 1
        return int(allowed[min(int(np.searchsorted(reached, share * reached[last], side="right")), last)])
