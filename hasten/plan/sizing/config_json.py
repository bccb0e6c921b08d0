"""A model's shape out of its ``config.json``, whatever the family calls its numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hasten.plan.sizing.shapes import LARGEST, ModelShape, ShapeKind
from hasten.records import InputError

# Names that families have given to the same number; the first that is there counts.
_NAMES: Mapping[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "decoder_layers"),
    "hidden": ("hidden_size", "n_embd", "dim", "d_model"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"),
    "ffn": ("intermediate_size", "n_inner", "hidden_dim", "d_ff", "decoder_ffn_dim", "ffn_dim"),
    "vocab": ("vocab_size",),
    "kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim", "d_kv"),
    "max_context": ("max_position_embeddings", "n_positions", "max_target_positions"),
    "window": ("sliding_window",),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts"),
    "experts_used": ("num_experts_per_tok",),
    "expert_ffn": ("moe_intermediate_size",),
    "encoder_layers": ("encoder_layers",),
}
_REQUIRED = ("layers", "hidden", "heads", "vocab", "ffn")
_SEQ2SEQ = ("t5", "mt5", "bart", "mbart", "marian", "pegasus", "whisper")
_ENCODERS = ("bert", "roberta", "electra", "mpnet", "deberta", "albert", "xlm-roberta", "camembert", "vit", "deit")
_GATED = ("silu", "swiglu", "geglu", "swish")
# GELU tells nothing: these gate it, others of that activation do not.
_GATED_FAMILIES = ("gemma", "gemma2", "gemma3", "gemma3_text", "modernbert")
_FOUR_TIMES = ("gpt2", "gpt_neox", "opt", "bloom")
# Families whose output head is one of its own unless the file says otherwise; transformers' own default is to share.
_UNTIED = ("llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "phi", "phi3", "gpt_neox")


def shape_of_folder(folder: str | Path) -> ModelShape:
    """Of a checkpoint's folder, or of a config.json. Raises InputError when it holds no shape."""
    path = Path(folder)
    path = path / "config.json" if path.is_dir() else path
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: {error}", expected="a checkpoint's config.json", remedy="give the folder that holds it"
        ) from error
    if not isinstance(data, dict):
        raise InputError(f"{path} holds no object", expected="a checkpoint's config.json", remedy="give another file")
    return shape_of_config(data, name=path.parent.name or "model", source=path.name)


def shape_of_config(config: Mapping[str, Any], *, name: str, source: str = "config.json") -> ModelShape:
    """The shape in a configuration as transformers writes it. Raises InputError naming what is missing."""
    nested = config.get("text_config")
    data = {**config, **nested} if isinstance(nested, Mapping) else dict(config)
    family = str(data.get("model_type", "")).lower()
    found = {key: _number(data, key) for key in _NAMES}
    found["ffn"] = found["ffn"] or (4 * found["hidden"] if family in _FOUR_TIMES else 0)
    missing = [key for key in _REQUIRED if not found[key]]
    if missing:
        raise InputError(
            f"{source} of {name} says nothing of {', '.join(missing)}",
            expected="a Transformer's config.json (as transformers writes it)",
            remedy="describe the model in a file and give --models-file",
        )
    if found["experts_used"] and not found["experts"]:
        found["experts_used"] = 0
    try:
        return _shape(data, found, family, name=name, source=source)
    except (ValueError, OverflowError) as error:
        raise InputError(
            f"{source} of {name}: {error}", expected="a Transformer's config.json", remedy="correct its numbers"
        ) from error


def _shape(data: Mapping[str, Any], found: dict[str, int], family: str, *, name: str, source: str) -> ModelShape:
    kind = _kind(data, family)
    shape = ModelShape(
        name=name.lower(), title=name, kind=kind, layers=found["layers"], hidden=found["hidden"],
        heads=found["heads"], ffn=found["ffn"], vocab=found["vocab"], gated=_gated(data, family),
        tied=bool(data.get("tie_word_embeddings", family not in _UNTIED)), full_every=_every(data), source=source,
    )  # fmt: skip
    if not data.get("use_sliding_window", True):
        found["window"] = 0
    rest: dict[str, Any] = {key: found[key] for key in _NAMES if key not in _REQUIRED}
    return replace(shape, **rest)


def _number(data: Mapping[str, Any], key: str) -> int:
    value = next((data[n] for n in _NAMES[key] if isinstance(data.get(n), int | float)), 0)
    if isinstance(value, bool) or not 0 <= value <= LARGEST or value != int(value):
        raise InputError(f"{key} is {value!r}", expected="a whole number", remedy="correct config.json")
    return int(value)


def _every(data: Mapping[str, Any]) -> int:
    """Every n-th layer sees everything: said as a number, or in Gemma 3's case by its kinds of layers."""
    value = data.get("sliding_window_pattern")
    if isinstance(value, int) and not isinstance(value, bool):
        return max(0, value)
    kinds = data.get("layer_types")
    if isinstance(kinds, list) and "full_attention" in kinds and "sliding_attention" in kinds:
        return kinds.index("full_attention") + 1
    return 0


def _kind(data: Mapping[str, Any], family: str) -> ShapeKind:
    if data.get("is_encoder_decoder") or family in _SEQ2SEQ:
        return "encoder-decoder"
    encoder = family in _ENCODERS or "bert" in family
    return "encoder" if encoder and not data.get("is_decoder") else "decoder"


def _gated(data: Mapping[str, Any], family: str) -> bool:
    if family in ("t5", "mt5"):
        return "gated" in str(data.get("feed_forward_proj", ""))
    activation = str(data.get("hidden_act") or data.get("hidden_activation") or data.get("activation_function") or "")
    return family in _GATED_FAMILIES or (activation.lower() in _GATED and family not in (*_FOUR_TIMES, *_ENCODERS))
