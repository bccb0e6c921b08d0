"""Tiny models that write text, their prompts, and what they say without any cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_models import BANDS, FRAMES, SEQ2SEQ, language_model, whisper

from hasten.runtimes import get_runtime
from hasten.runtimes.runtime import Array, Arrays
from hasten.tasks.generation_wrappers import GenerationWrapper, Seq2SeqGenerationWrapper


def wrapped(family: str) -> Any:
    """The wrapper around a random model; "whisper" is one for speech."""
    if family == "whisper":
        return Seq2SeqGenerationWrapper(whisper()).eval()
    if family in SEQ2SEQ:
        return Seq2SeqGenerationWrapper(language_model(family)).eval()
    return GenerationWrapper(language_model(family)).eval()


def prompts(family: str, *, lengths: tuple[int, ...], seed: int = 0) -> Arrays:
    """Rows of these lengths, padded on the side that the family wants; of sound all are as long."""
    rng = np.random.default_rng(seed)
    if family == "whisper":
        return {"input_features": rng.normal(size=(len(lengths), BANDS, FRAMES)).astype(np.float32)}
    longest = max(lengths)
    ids, mask = np.full((len(lengths), longest), 1), np.zeros((len(lengths), longest), dtype=np.int64)
    for row, length in enumerate(lengths):
        place = slice(0, length) if family in SEQ2SEQ else slice(longest - length, longest)
        ids[row, place], mask[row, place] = rng.integers(6, 60, size=length), 1
    return {"input_ids": ids, "attention_mask": mask}


def uncached(wrapper: Any, arrays: Arrays, ids: Array) -> Array:
    """The logits before each of ``ids`` [B, N] and after the last one [B, N + 1, V]: every row by itself, without
    padding or a cache, in one pass of the eager model."""
    rows = []
    for row, wanted in enumerate(ids):
        own = {name: torch.from_numpy(array[row : row + 1]) for name, array in arrays.items()}
        if "attention_mask" in own:
            real = own.pop("attention_mask")[0].bool()
            own["input_ids"] = own["input_ids"][:, real]
        follows = torch.from_numpy(wanted)[None]
        if wrapper.encoder:
            own["decoder_input_ids"] = torch.cat([torch.tensor([wrapper.start]), follows], dim=1)
        else:
            own["input_ids"] = torch.cat([own["input_ids"], follows], dim=1)
        with torch.inference_mode():
            rows.append(wrapper.hf(**own, use_cache=False).logits[0, -len(wanted) - 1 :].numpy())
    return np.stack(rows)


def opened(wrapper: Any, config: Any, folder: Path, *, example: Arrays, cache: Path | None = None) -> Any:
    """Export into ``folder`` and open again."""
    folder.mkdir(parents=True)
    (cache or folder.parent / "cache").mkdir(exist_ok=True)
    room = get_runtime(config.kind)
    exported = room.export(
        wrapper, config, calibration=[example], folder=folder, cache=cache or folder.parent / "cache"
    )
    assert set(exported.files) == {path.name for path in folder.iterdir()}
    assert exported.input_names == tuple(example)
    return room.open(folder, config, threads=1, cores=(0,))
