"""Tiny encoders with every head, as their tasks wrap them, and ragged batches for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_models import TEXTS, shaken, tiny_config

from hasten.models import adapter_for
from hasten.models.adapter import Adapter
from hasten.runtimes import get_runtime
from hasten.runtimes.native import NativeConfig
from hasten.tasks.wrappers import LogitsWrapper, PooledWrapper, ScoreWrapper, SpanWrapper, TokensWrapper, Wrapper

INT8 = NativeConfig(precision="int8-dynamic")
FAMILIES = (*TEXTS, "albert")
HEADS = ("classes", "number", "tags", "span", "mean", "first", "mean, normalized")
LENGTHS = (5, 1, 13, 40)
Arrays = dict[str, Any]
Array = np.ndarray[Any, Any]


def config_of(family: str, **changes: Any) -> Any:
    if family != "albert":
        return tiny_config(family, **changes)
    from transformers import AlbertConfig

    sizes = {"vocab_size": 66, "max_position_embeddings": 66, "pad_token_id": 1, "hidden_size": 32, "num_labels": 3}
    sizes |= {"embedding_size": 16, "num_attention_heads": 4, "num_hidden_layers": 3, "intermediate_size": 64}
    return AlbertConfig(**{**sizes, **changes})


def wrapped(family: str, head: str = "classes", *, seed: int = 0, **changes: Any) -> Wrapper:
    """Random, and every weight away from its usual start."""
    import transformers as t

    torch.manual_seed(seed)
    changes = {**changes, **({"num_labels": 1} if head == "number" else {})}
    classes = {
        "classes": t.AutoModelForSequenceClassification, "number": t.AutoModelForSequenceClassification,
        "tags": t.AutoModelForTokenClassification, "span": t.AutoModelForQuestionAnswering,
    }  # fmt: skip
    config = config_of(family, **changes)
    if head == "span":
        config.num_labels = 2
    model = shaken(classes.get(head, t.AutoModel).from_config(config)).eval()
    kinds = {"classes": LogitsWrapper, "number": ScoreWrapper, "tags": TokensWrapper, "span": SpanWrapper}
    if head in kinds:
        return kinds[head](model).eval()
    return PooledWrapper(model, pooling=head.split(",")[0].replace("first", "cls"), normalize="norm" in head).eval()


def adapter_to(wrapper: Wrapper) -> Adapter:
    found = adapter_for(wrapper.hf.config.model_type)
    assert found is not None
    return found


def typed(family: str) -> bool:
    return family in ("bert", "electra", "albert")


def batch_of(family: str, lengths: tuple[int, ...] = LENGTHS, *, seed: int = 0) -> Arrays:
    """Padded on the right with zeros, as requests are; types 0 and 1 where the family tells texts of a pair apart."""
    rng = np.random.default_rng(seed)
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    batch = {"input_ids": rng.integers(4, 66, mask.shape) * mask, "attention_mask": mask}
    return {**batch, "token_type_ids": rng.integers(0, 2, mask.shape) * mask} if typed(family) else batch


def eager(wrapper: Wrapper, batch: Arrays) -> Array:
    """[B, C], or of the real tokens [T, C]."""
    with torch.inference_mode():
        found: Array = wrapper(**{name: torch.from_numpy(array) for name, array in batch.items()}).numpy()
    return found[batch["attention_mask"] != 0] if wrapper.per_token else found


def exported(wrapper: Wrapper, folder: Path, config: NativeConfig, batch: Arrays) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    return get_runtime("native").export(wrapper, config, calibration=[batch], folder=folder, cache=folder)


def opened(folder: Path, config: NativeConfig, *, threads: int = 1) -> Any:
    return get_runtime("native").open(folder, config, threads=threads, cores=())


def run(session: Any, wrapper: Wrapper, batch: Arrays) -> Array:
    found: Array = session.run(batch)
    return found[batch["attention_mask"] != 0] if wrapper.per_token else found


def ragged(batch: Arrays) -> tuple[list[int], list[int], list[int] | None]:
    """ids, lengths and types of the real tokens."""
    real = batch["attention_mask"] != 0
    types = batch["token_type_ids"][real].tolist() if "token_type_ids" in batch else None
    return batch["input_ids"][real].tolist(), real.sum(axis=1).tolist(), types
