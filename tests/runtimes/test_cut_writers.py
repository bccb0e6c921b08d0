"""Encoder-decoders that were cut unevenly: through its cache, every runtime says what the eager model says without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generation_cases import opened, prompts, uncached, wrapped

from hasten.models import adapter_for
from hasten.models.surgery import keep_heads, keep_layers, keep_neurons
from hasten.runtimes.onnxruntime import OnnxRuntimeConfig
from hasten.runtimes.openvino import OpenVinoConfig
from hasten.runtimes.parity import parity
from hasten.runtimes.torch import TorchConfig

CONFIGS = (TorchConfig(), OnnxRuntimeConfig(fusion=False), OpenVinoConfig())
CASES = [
    pytest.param(family, config, id=f"{family} {config.kind}", marks=[pytest.mark.slow] if family == "bart" else [])
    for family in ("whisper", "bart")
    for config in CONFIGS
]
IDS = np.random.default_rng(1).integers(6, 60, size=(2, 6))


def cut(family: str) -> Any:
    """Without its first encoder layer, with another number of heads in every kind of attention, and fewer neurons."""
    wrapper = wrapped(family)
    adapter = adapter_for(family)
    assert adapter is not None
    encoder, decoder = adapter.stacks(wrapper.hf)
    keep_layers(wrapper.hf, adapter, range(1, len(encoder.layers)), stack="encoder")
    keep_layers(wrapper.hf, adapter, [0, len(decoder.layers) - 1], stack="decoder")
    crossing = adapter.cross_attention(decoder.layers[1])
    assert crossing is not None
    keep_heads(adapter.attention(encoder.layers[0]), [0, 1, 3])
    keep_heads(adapter.attention(decoder.layers[0]), [1])
    keep_heads(crossing, [0])
    keep_neurons(adapter.ffn(encoder.layers[0]), range(17))
    keep_neurons(adapter.ffn(decoder.layers[1]), range(9, 48))
    return wrapper


@pytest.mark.parametrize(("family", "config"), CASES)
def test_cached_steps_of_a_cut_model(family: str, config: Any, tmp_path: Path) -> None:
    wrapper, arrays = cut(family), prompts(family, lengths=(9, 4))
    wanted = uncached(wrapper, arrays, IDS)
    session = opened(wrapper, config, tmp_path / "model", example=arrays)
    assert parity(list(wanted), list(session.forced(arrays, IDS)), "fp32") is None
    alone = prompts(family, lengths=(7,), seed=1)
    assert parity(list(uncached(wrapper, alone, IDS[:1])), list(session.forced(alone, IDS[:1])), "fp32") is None
