"""The adapter of a wrapper's family, or the reason why a pass cannot work without one."""

from __future__ import annotations

from typing import Any

from hasten.models import FAMILIES, adapter_for
from hasten.models.adapter import Adapter
from hasten.records import Rejected


def adapter_of(model: Any, *, what: str) -> Adapter:
    """Adapter of the wrapper ``model``; ``what`` is the pass that asks.

    Raises Rejected naming the pass, the family and the families that it can handle.
    """
    family = model.hf.config.model_type
    found = adapter_for(family)
    if found is None:
        raise Rejected("family", f"{what} cannot handle the family {family}; it can handle {', '.join(FAMILIES)}")
    return found
