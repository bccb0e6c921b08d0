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


def check_in_turn(model: Any, *, what: str) -> None:
    """Raises Rejected when a layer cannot be looked at by itself, in its one place, called as the first one is.

    Where layers share weights (ALBERT), or add what the first has looked up (T5), or see different tokens or positions
    (Gemma), the call of the first layer says too little about the others.
    """
    adapter = adapter_of(model, what=what)
    stack = adapter.stacks(model.hf)[0]
    kinds = getattr(model.hf.config.get_text_config(), "layer_types", None) or ()
    if stack.shared and stack.depth != len(stack.layers):
        why = "a layer runs more than once"
    elif any(adapter.attention(layer).fixed is not None for layer in stack.layers):
        why = "layers use what the first has looked up"
    elif len(set(kinds)) > 1:
        why = f"layers differ in what they see ({', '.join(sorted(set(kinds)))})"
    else:
        return
    raise Rejected("family", f"{what} takes one layer after the other, and in this {adapter.family} {why}")
