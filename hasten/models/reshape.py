"""Save and open models whose layers no longer have the sizes that their config says.

Takes a model after surgery, writes a Hugging Face folder (safetensors, config, nothing else), and opens it
again. The weights themselves say what shape every linear layer has: there is no second description that could
contradict them. Matrices of many zeros or few values are stored compactly (:mod:`hasten.models.compact_store`). A
folder of neither kind opens as any checkpoint does. The weights of these two kinds lie in ``hasten.safetensors``: from
``model.safetensors`` transformers would take what it knows, fill the rest at random and say little of it; without that
file it refuses.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hasten.models import adapter_for
from hasten.models.compact_store import compact_form, load_compact, write_stored
from hasten.models.inspect import COMPACT, MARK, OWN_WEIGHTS
from hasten.models.prefix import attach_stored
from hasten.models.shards import weight_files
from hasten.models.surgery import LowRankLinear, replace_module
from hasten.records import InputError

_WEIGHTS = "model.safetensors"
_ONE_FILE = 1 << 62  # bytes of a shard


def save_model(model: Any, folder: Path) -> None:
    """Write config and weights. Where a plain ``from_pretrained`` could not read them, the config is marked and the
    weights get a name that it does not look for."""
    for mark in (MARK, COMPACT):  # of the folder that it came from
        if hasattr(model.config, mark):
            delattr(model.config, mark)
    reshaped = differs_from_config(model)
    if reshaped:
        setattr(model.config, MARK, True)
    plain, own = folder / _WEIGHTS, folder / OWN_WEIGHTS
    own.unlink(missing_ok=True)
    # The names of the model's own modules: transformers would write older ones for some families.
    model.save_pretrained(folder, save_original_format=False, max_shard_size=_ONE_FILE)
    smaller = compact_form(plain)
    if smaller is not None:
        # The mark comes first: with it either form can be read, without it parts would pass for missing weights.
        setattr(model.config, COMPACT, True)
        model.config.save_pretrained(folder)
        write_stored(smaller, own)
        plain.unlink()
    elif reshaped:
        plain.replace(own)


def open_model(cls: Any, folder: Path, *, attention: str, dtype: Any) -> Any:
    """The model of transformers class ``cls`` in ``folder``, in eval mode.

    Raises InputError when weights are missing, left over, or of a shape that no layer of the model can take.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if attention == "sdpa" and not getattr(cls, "_supports_sdpa", True):
        attention = "eager"  # Gemma 2 caps its scores, which the fused kernel cannot
    if not getattr(config, MARK, False) and not getattr(config, COMPACT, False):
        weight_files(folder)  # raises for an index that leads elsewhere
        plain = cls.from_pretrained(
            folder, attn_implementation=attention, dtype=dtype, use_safetensors=True, local_files_only=True
        )
        return prepared(plain).eval()
    config._attn_implementation = attention
    model = prepared(cls(config))
    own = folder / OWN_WEIGHTS
    weights = load_compact(own if own.is_file() else folder / _WEIGHTS)  # the second: a folder of an older version
    fit_to_weights(model, weights)
    attach_stored(model, weights)
    _load(model, weights, folder)
    adapter = adapter_for(config.model_type)
    if adapter is not None:
        adapter.settle(model)
    return model.to(dtype).eval()


def prepared(model: Any) -> Any:
    """The model in the form that adapters describe and this file writes: every matrix an ``nn.Linear`` (a GPT-2's are
    not, nor are experts). Every loaded model has to pass here once; twice changes nothing."""
    adapter = adapter_for(model.config.model_type)
    if adapter is not None:
        adapter.prepare(model)
    return model


def is_ours(folder: Path) -> bool:
    """Does the config say that only :func:`open_model` can read this folder?"""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return bool(config.get(MARK) or config.get(COMPACT))


def differs_from_config(model: Any) -> bool:
    """Does any weight have another shape than a fresh model of the same config?"""
    with torch.device("meta"):
        fresh = type(model)(model.config).state_dict()
    own = model.state_dict()
    return fresh.keys() != own.keys() or any(fresh[name].shape != own[name].shape for name in own)


def fit_to_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give every linear layer the size (or the two factors) that its stored weights have, and every table its own."""
    for name, module in list(model.named_modules()):
        whole, first, second = (weights.get(f"{name}.{part}weight") for part in ("", "first.", "second."))
        if isinstance(module, nn.Embedding) and whole is not None and whole.ndim == 2:
            if whole.shape != module.weight.shape:
                module.weight = nn.Parameter(torch.empty(whole.shape))
                module.num_embeddings, module.embedding_dim = whole.shape
        elif isinstance(module, nn.Linear):
            bias = module.bias is not None
            if whole is not None and whole.ndim == 2 and whole.shape != module.weight.shape:
                replace_module(model, name, nn.Linear(whole.shape[1], whole.shape[0], bias=bias))
            elif first is not None and second is not None and first.ndim == second.ndim == 2:
                thin = LowRankLinear(first.shape[1], second.shape[0], rank=first.shape[0], bias=bias)
                replace_module(model, name, thin)


def _load(model: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
    try:
        found = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        wrong = str(error).strip().splitlines()[-1].strip()[:200]
        raise _broken(folder, wrong) from error
    # Tied weights are stored once, and computed ones (Marian's positions) never; anything else would be random.
    known = set(getattr(model, "all_tied_weights_keys", None) or ())
    known |= set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    missing = [key for key in found.missing_keys if key not in known]
    if missing or found.unexpected_keys:
        raise _broken(folder, f"missing {missing[:3]}, left over {list(found.unexpected_keys)[:3]}")


def _broken(folder: Path, what: str) -> InputError:
    return InputError(
        f"the weights in {folder} do not fit its config: {what}",
        expected="the folder as hasten wrote it",
        remedy="build it again with hasten optimize",
    )
