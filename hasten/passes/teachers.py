"""The models that a student learns from: the original, or others that speak the same language.

Takes folders named in a recipe, gives wrappers. A teacher with another tokenizer or other labels is refused: its
answers would belong to other inputs or other classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hasten.models.load import load_checkpoint
from hasten.passes.calibration import Calibration
from hasten.records import ModelRef, Rejected
from hasten.tasks import get_task


def teachers_for(sources: Sequence[str], given: Calibration) -> list[Any]:
    """Wrappers in eval mode, without gradients; no sources: the original alone. Raises Rejected for a misfit."""
    if not sources:
        return [_still(given.original)]
    return [_still(_loaded(source, given)) for source in sources]


def _loaded(source: str, given: Calibration) -> Any:
    if given.original is None:
        raise Rejected("distill", "other teachers are compared with the original model, which is not given")
    task = given.original.task
    found = load_checkpoint(ModelRef(source), task=get_task(task))
    if given.tokenizer_json is not None and found.tokenizer_json != given.tokenizer_json:
        raise Rejected("distill", f"the teacher {source} has another tokenizer than the student")
    own = given.original.hf.config.id2label
    if get_task(task).labelled and found.config.id2label != own:
        raise Rejected(
            "distill", f"the teacher {source} has other labels ({len(found.labels)} of them) than the student"
        )
    return get_task(task).wrap(found)


def _still(model: Any) -> Any:
    return model.eval().requires_grad_(False)
