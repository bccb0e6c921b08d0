"""Tiny decoders as their tasks wrap them, and their native sessions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_models import language_model

from hasten.models import adapter_for
from hasten.models.adapter import Adapter
from hasten.models.surgery import keep_heads, keep_layers, keep_neurons
from hasten.runtimes import get_runtime
from hasten.runtimes.native import NativeConfig
from hasten.runtimes.native_decoders import FAMILIES
from hasten.tasks.generation_wrappers import GenerationWrapper
from hasten.tasks.wrappers import NextTokenWrapper

Array = np.ndarray[Any, Any]
Arrays = dict[str, Any]
DECODERS = tuple(FAMILIES)
WINDOWED = ("mistral", "qwen2", "phi3", "gemma2", "gemma3_text")
IDS = np.random.default_rng(1).integers(6, 60, size=(2, 6))


def writer(family: str, **changes: Any) -> GenerationWrapper:
    return GenerationWrapper(language_model(family, **changes)).eval()


def reader(family: str, **changes: Any) -> NextTokenWrapper:
    return NextTokenWrapper(language_model(family, **changes)).eval()


def adapter_to(wrapper: Any) -> Adapter:
    found = adapter_for(wrapper.hf.config.model_type)
    assert found is not None
    return found


def cut(wrapper: Any) -> None:
    """Two of three layers, of 1 and 2 groups of heads and of 24 and 40 neurons."""
    adapter = adapter_to(wrapper)
    keep_layers(wrapper.hf, adapter, [0, 2])
    groups = adapter.attention(adapter.layers(wrapper.hf)[0]).groups
    for layer, (heads, neurons) in zip(adapter.layers(wrapper.hf), [([1], 24), (list(range(groups)), 40)], strict=True):
        keep_heads(adapter.attention(layer), heads)
        keep_neurons(adapter.ffn(layer), list(range(neurons)))
    adapter.settle(wrapper.hf)


def exported(wrapper: Any, folder: Path, config: NativeConfig) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    example = batch_of((5, 3), left=getattr(wrapper, "generative", False))
    return get_runtime("native").export(wrapper, config, calibration=[example], folder=folder, cache=folder)


def session_of(wrapper: Any, folder: Path, config: NativeConfig, *, threads: int = 1) -> Any:
    exported(wrapper, folder, config)
    return get_runtime("native").open(folder, config, threads=threads, cores=())


def batch_of(lengths: tuple[int, ...], *, left: bool, seed: int = 0) -> Arrays:
    rng, longest = np.random.default_rng(seed), max(lengths)
    ids, mask = np.full((len(lengths), longest), 1), np.zeros((len(lengths), longest), dtype=np.int64)
    for row, length in enumerate(lengths):
        place = slice(longest - length, longest) if left else slice(0, length)
        ids[row, place], mask[row, place] = rng.integers(6, 60, size=length), 1
    return {"input_ids": ids, "attention_mask": mask}


def uncached(wrapper: Any, arrays: Arrays, ids: Array) -> Array:
    """The logits before each of ``ids`` and after the last one [B, N + 1, V], every row by itself in eager PyTorch."""
    rows = []
    for given, real, wanted in zip(arrays["input_ids"], arrays["attention_mask"] != 0, ids, strict=True):
        row = torch.from_numpy(np.concatenate([given[real], wanted]))[None]
        with torch.inference_mode():
            rows.append(wrapper.hf(input_ids=row, use_cache=False).logits[0, -len(wanted) - 1 :].numpy())
    return np.stack(rows)


def greedy(wrapper: Any, arrays: Arrays, tokens: int) -> Array:
    """What eager PyTorch writes, one token after the other without a cache [B, N]."""
    ids = np.empty((len(arrays["input_ids"]), 0), dtype=np.int64)
    for _ in range(tokens):
        ids = np.concatenate([ids, uncached(wrapper, arrays, ids)[:, -1:].argmax(axis=-1)], axis=1)
    return ids


def foretold(wrapper: Any, batch: Arrays) -> list[Array]:
    """[L - 1, 2] of each row in eager PyTorch: its last token has nothing to foretell."""
    with torch.inference_mode():
        found = wrapper(**{name: torch.from_numpy(array) for name, array in batch.items()}).numpy()
    return of_rows(found, batch)


def of_rows(found: Array, batch: Arrays) -> list[Array]:
    return [row[real][:-1] for row, real in zip(found, batch["attention_mask"] != 0, strict=True)]


def close(got: Array, wanted: Array, *, within: float) -> None:
    scale = float(np.abs(wanted).max())
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() <= within * scale, f"{np.abs(got - wanted).max() / scale:.2e} of the scale"


Change = Callable[[Any], None]
