"""The families by ``model_type``, and how their adapters are found.

To add one: a file beside this one and a line in :data:`FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from hasten.models.adapter import Adapter

# config.json's model_type -> where its adapter is
FAMILIES: Mapping[str, str] = {
    "bert": "hasten.models.bert:BERT",
    "roberta": "hasten.models.roberta:ROBERTA",
    "xlm-roberta": "hasten.models.roberta:XLM_ROBERTA",
    "distilbert": "hasten.models.distilbert:DISTILBERT",
    "electra": "hasten.models.electra:ELECTRA",
}


def adapter_for(model_type: str) -> Adapter | None:
    """The family's adapter, or ``None`` for a family without one."""
    if model_type not in FAMILIES:
        return None
    module, name = FAMILIES[model_type].split(":")
    return cast("Adapter", getattr(import_module(module), name))
