"""Families beside BERT's: what is exported of images, shared layers and bottlenecks is the model that it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import IMAGES, SIDE, SIZES, language_config, shaken, tiny_config

from hasten.models.reshape import prepared
from hasten.runtimes import get_runtime
from hasten.runtimes.onnxruntime import OnnxRuntimeConfig
from hasten.runtimes.openvino import OpenVinoConfig
from hasten.runtimes.parity import parity
from hasten.runtimes.torch import TorchConfig
from hasten.tasks.wrappers import ImageWrapper, LogitsWrapper, NextTokenWrapper, Wrapper

TEXTS = ("albert", "mobilebert")
DECODERS = ("llama", "mistral", "qwen3", "phi3", "gemma2", "gemma3_text", "mixtral", "qwen2_moe", "qwen3_moe")
FP32 = (TorchConfig(), OnnxRuntimeConfig(fusion=False), OpenVinoConfig())
INT8 = (OnnxRuntimeConfig(precision="int8-dynamic", fusion=False), OpenVinoConfig(precision="int8"))
# What OpenVINO's buckets do to these: parity rejects them in a run, and other runtimes are left.
KNOWN = {
    ("mobilebert", "fp32"): "its embeddings join neighbours: what stands behind a text, also padding, changes its end",
    ("gemma3_text", "fp32"): "padding beyond a window sees nothing at all, and what it computes then is no number",
}


def case(family: str, config: Any) -> Any:
    marks = []
    if isinstance(config, OpenVinoConfig) and (family, config.precision) in KNOWN:
        marks = [pytest.mark.xfail(strict=True, reason=KNOWN[family, config.precision])]
    return pytest.param(family, config, id=f"{family} {config.kind} {config.precision}", marks=marks)


def wrapped(family: str) -> Wrapper:
    import transformers as t

    torch.manual_seed(0)
    if family in IMAGES:
        return ImageWrapper(shaken(t.AutoModelForImageClassification.from_config(tiny_config(family)))).eval()
    if family in DECODERS:
        made = t.AutoModelForCausalLM.from_config(language_config(family))
        return NextTokenWrapper(prepared(shaken(made.eval()))).eval()
    settings = {"vocab_size": 66, "max_position_embeddings": 66, "pad_token_id": 1, "embedding_size": 16, **SIZES}
    settings |= {"num_labels": 3, "num_hidden_layers": 2}
    if family == "albert":
        return LogitsWrapper(shaken(t.AlbertForSequenceClassification(t.AlbertConfig(**settings)))).eval()
    thin = {"intra_bottleneck_size": 16, "num_feedforward_networks": 2}
    return LogitsWrapper(shaken(t.MobileBertForSequenceClassification(t.MobileBertConfig(**settings, **thin)))).eval()


def feeds(family: str, *sizes: tuple[int, int]) -> list[dict[str, Any]]:
    """Batches of so many rows of up to so many tokens; of images the second number means nothing."""
    rng, made = np.random.default_rng(0), []
    for rows, length in sizes:
        if family in IMAGES:
            made.append({"pixel_values": rng.normal(size=(rows, 3, SIDE, SIDE)).astype(np.float32)})
            continue
        mask = np.array([[1] * n + [0] * (length - n) for n in [length, *rng.integers(1, length + 1, rows - 1)]])
        ids = np.where(mask == 1, rng.integers(4, 60, size=(rows, length)), 1)
        made.append({"input_ids": ids, "attention_mask": mask})
        if family in TEXTS:
            made[-1]["token_type_ids"] = np.zeros_like(mask)
    return made


def check(family: str, config: Any, folder: Path) -> None:
    for name in ("model", "cache"):
        (folder / name).mkdir()
    wrapper, runtime = wrapped(family), get_runtime(config.kind)
    calibration = feeds(family, *((1, n) for n in range(3, 20)))
    runtime.export(wrapper, config, calibration=calibration, folder=folder / "model", cache=folder / "cache")
    session = runtime.open(folder / "model", config, threads=1, cores=(0,))
    batches = feeds(family, (1, 3), (2, 9), (5, 33))
    with torch.inference_mode():
        wanted = [wrapper(**{n: torch.from_numpy(a) for n, a in batch.items()}).numpy() for batch in batches]
    found = [session.run(batch) for batch in batches]
    if family in DECODERS:  # of real tokens, and without the likeliest one's number, which is no quantity
        real = [batch["attention_mask"][:, 1:] == 1 for batch in batches]
        wanted, found = ([o[:, :-1, 0][mask] for o, mask in zip(side, real, strict=True)] for side in (wanted, found))
    assert parity(wanted, found, config.precision) is None
    session.close()


@pytest.mark.slow
@pytest.mark.parametrize(("family", "config"), [case(f, c) for f in (*TEXTS, *IMAGES) for c in (*FP32, *INT8)])
def test_classifiers(family: str, config: Any, tmp_path: Path) -> None:
    check(family, config, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "config"), [case(f, c) for f in DECODERS for c in FP32[1:]])
def test_readers_of_text(family: str, config: Any, tmp_path: Path) -> None:
    """Whole texts in one pass, as language-modeling and multiple-choice run them."""
    check(family, config, tmp_path)
