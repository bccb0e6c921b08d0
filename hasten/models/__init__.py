"""The families by ``model_type``, and how their adapters are found.

To add one: a file beside this one and a line in the table of its kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Literal, cast

if TYPE_CHECKING:
    from hasten.models.adapter import Adapter

Kind = Literal["encoder", "vision", "decoder", "seq2seq"]

# config.json's model_type -> where its adapter is
_ENCODERS = {
    "bert": "hasten.models.bert:BERT",
    "roberta": "hasten.models.roberta:ROBERTA",
    "xlm-roberta": "hasten.models.roberta:XLM_ROBERTA",
    "distilbert": "hasten.models.distilbert:DISTILBERT",
    "electra": "hasten.models.electra:ELECTRA",
    "albert": "hasten.models.albert:ALBERT",
    "mobilebert": "hasten.models.mobilebert:MOBILEBERT",
}
_VISION = {
    "vit": "hasten.models.vit:VIT",
    "deit": "hasten.models.vit:DEIT",
    "dinov2": "hasten.models.dinov2:DINOV2",
}
_DECODERS = {
    "gpt2": "hasten.models.gpt2:GPT2",
    "llama": "hasten.models.llama:LLAMA",
    "mistral": "hasten.models.llama:MISTRAL",
    "qwen2": "hasten.models.llama:QWEN2",
    "qwen3": "hasten.models.llama:QWEN3",
    "phi3": "hasten.models.llama:PHI3",
    "gemma2": "hasten.models.gemma:GEMMA2",
    "gemma3_text": "hasten.models.gemma:GEMMA3_TEXT",
    "gemma3": "hasten.models.gemma:GEMMA3",
    "mixtral": "hasten.models.moe:MIXTRAL",
    "qwen2_moe": "hasten.models.moe:QWEN2_MOE",
    "qwen3_moe": "hasten.models.moe:QWEN3_MOE",
}
_SEQ2SEQ = {
    "t5": "hasten.models.t5:T5",
    "bart": "hasten.models.bart:BART",
    "marian": "hasten.models.bart:MARIAN",
    "whisper": "hasten.models.whisper:WHISPER",
}
_TABLES: Mapping[Kind, Mapping[str, str]] = {
    "encoder": _ENCODERS, "vision": _VISION, "decoder": _DECODERS, "seq2seq": _SEQ2SEQ,
}  # fmt: skip

FAMILIES: Mapping[str, str] = {family: place for table in _TABLES.values() for family, place in table.items()}
KINDS: Mapping[str, Kind] = {family: kind for kind, table in _TABLES.items() for family in table}


def adapter_for(model_type: str) -> Adapter | None:
    """The family's adapter, or ``None`` for a family without one."""
    if model_type not in FAMILIES:
        return None
    module, name = FAMILIES[model_type].split(":")
    return cast("Adapter", getattr(import_module(module), name))
