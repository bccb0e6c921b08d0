"""Random encoders of any proportions, for measuring a host. Runs in the worker: needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def export_encoder(
    *, proportions: tuple[int, int, int, int], vocab: int, runtime: Mapping[str, Any], folder: Path
) -> int:
    """Export a BERT of (layers, hidden, FFN, heads) with random weights; the artifact's bytes."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from hasten.records import config_from_dict
    from hasten.runtimes import configs, get_runtime
    from hasten.tasks.wrappers import LogitsWrapper

    torch.manual_seed(0)
    layers, hidden, ffn, heads = proportions
    config = BertConfig(
        vocab_size=vocab, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=ffn, num_labels=4,
    )  # fmt: skip
    wrapper = LogitsWrapper(BertForSequenceClassification(config)).eval()
    parsed = config_from_dict(runtime, configs())
    cache = folder / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    out = folder / "model"
    out.mkdir(exist_ok=True)
    get_runtime(parsed.kind).export(wrapper, parsed, calibration=[_example(vocab)], folder=out, cache=cache)
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


def _example(vocab: int) -> dict[str, Any]:
    import numpy as np

    ids = np.arange(16, dtype=np.int64)[None, :] % vocab
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
