"""The adapter of a wrapper's family, or the reason why a pass cannot work without one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hasten.models import FAMILIES, adapter_for
from hasten.models.adapter import Adapter, Stack
from hasten.passes.calibration import Calibration, Progress
from hasten.records import Rejected
from hasten.tasks.examples import ANSWER


def adapter_of(model: Any, *, what: str) -> Adapter:
    """Adapter of the wrapper ``model``; ``what`` is the pass that asks.

    Raises Rejected naming the pass, the family and the families that it can handle.
    """
    family = model.hf.config.model_type
    found = adapter_for(family)
    if found is None:
        raise Rejected("family", f"{what} cannot handle the family {family}; it can handle {', '.join(FAMILIES)}")
    return found


def stacks_with_rows(model: Any, calibration: Calibration, *, what: str) -> Sequence[Stack]:
    """The stacks whose inputs the calibration's rows say: of an encoder-decoder both, or the encoder alone where the
    rows hold no answers, which is noted."""
    found = adapter_of(model, what=what).stacks(model.hf)
    if len(found) == 1 or all(name in calibration.first(1)[0] for name in ANSWER):
        return found
    others = " and ".join(stack.name for stack in found[1:])
    said = (
        f"{what}: the {found[0].name}'s matrices alone; those of the {others} are as they were, for the rows hold no "
        "answers"
    )
    calibration.listen(Progress(said, 1, 1, note=True))
    return found[:1]


def check_in_turn(model: Any, *, what: str) -> None:
    """Raises Rejected where a layer runs in several places (ALBERT): it cannot be looked at in one of them alone."""
    adapter = adapter_of(model, what=what)
    stack = adapter.stacks(model.hf)[0]
    if stack.shared and stack.depth != len(stack.layers):
        raise Rejected(
            "family",
            f"{what} takes one layer after the other, and in this {adapter.family} a layer runs more than once",
        )


def called_alike(model: Any) -> bool:
    """Are all layers of a stack called as its first one is? Not where they see different tokens or positions (Gemma),
    or add what the first has looked up (T5)."""
    adapter = adapter_of(model, what="a pass over layers")
    layers = [layer for stack in adapter.stacks(model.hf) for layer in stack.layers]
    return not kinds_of(model) and all(adapter.attention(layer).fixed is None for layer in layers)


def kinds_of(model: Any) -> tuple[str, ...]:
    """The names of what layers see, where that is not the same for all of them."""
    found = sorted(set(getattr(model.hf.config.get_text_config(), "layer_types", None) or ()))
    return tuple(found) if len(found) > 1 else ()
