"""Encoder-decoders in the wrapper that passes take, and rows of sources and answers, which the tests of pairs share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tiny_models import BANDS, FRAMES, language_model, whisper

from hasten.passes.calibration import Calibration
from hasten.tasks.examples import ANSWER
from hasten.tasks.generation_wrappers import PairWrapper

END = 5


def pair_model(family: str, *, seed: int = 0) -> PairWrapper:
    """A random one: three layers that read and two that write (of Whisper two and three)."""
    return PairWrapper(whisper() if family == "whisper" else language_model(family, seed=seed)).eval()


def row_of(source: Any, answer: Any, *, start: tuple[int, ...]) -> dict[str, Any]:
    """One row [1, ...]; ``source`` are ids, or features of a sound."""
    ids = np.array([[*start, *answer]], dtype=np.int64)
    beside = dict(zip(ANSWER, (ids, np.ones_like(ids)), strict=True))
    if source.ndim == 2:
        return {"input_features": source[None], **beside}
    given = np.array(source[None], dtype=np.int64)
    return {"input_ids": given, "attention_mask": np.ones_like(given), **beside}


def pairs_for(
    model: PairWrapper, *, count: int = 24, seed: int = 0, original: Any = None, notes: list[str] | None = None
) -> Calibration:  # fmt: skip
    """Sources of 3 to 13 tokens (of Whisper: sounds) and answers of 2 to 9 and an end, drawn at random."""
    rng = np.random.default_rng(seed)
    heard = model.hf.config.model_type == "whisper"
    rows = []
    for reads, writes in zip(rng.integers(3, 14, size=count), rng.integers(2, 10, size=count), strict=True):
        sound = rng.normal(size=(BANDS, FRAMES)).astype(np.float32)
        source = sound if heard else rng.integers(6, 60, size=reads)
        rows.append(row_of(source, [*rng.integers(6, 60, size=writes), END], start=model.start))
    skipped = len(model.start)
    targets = [np.where(np.arange(len(row[ANSWER[0]][0])) < skipped, -100, row[ANSWER[0]][0]) for row in rows]
    said = [] if notes is None else notes
    return Calibration(
        rows, targets=targets, original=original, seed=3,
        listen=lambda progress: said.append(progress.what) if progress.note else None,
    )  # fmt: skip


def nudged(model: Any, *, size: float, seed: int = 1) -> Any:
    """The same model with noise on all that is learnt."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * size)
    return model
