"""Progressive distillation: teacher -> assistants -> student, each from the one before.

Takes a wrapper (the student, of its final shape), gives it back taught by the last assistant. A student much smaller
than its teacher cannot follow it everywhere; an assistant in between says the same in simpler words.

Source: Mirzadeh et al. 2020, "Improved Knowledge Distillation via Teacher Assistant".
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from hasten.models.reshape import open_model, save_model
from hasten.passes.calibration import Calibration
from hasten.passes.distillation import DistillConfig, distill
from hasten.passes.family import adapter_of
from hasten.passes.layers import LayersConfig, drop_layers
from hasten.passes.settings import as_declared
from hasten.records import InputError, Rejected
from hasten.tasks import get_task


@dataclass(frozen=True, slots=True)
class ProgressiveConfig:
    """``assistants``: their layers, from the largest down. ``epochs`` are those of all stages together, shared evenly;
    the other settings are those of :class:`hasten.passes.distillation.DistillConfig`."""

    kind: ClassVar[str] = "progressive"
    assistants: tuple[int, ...]
    epochs: float = 8.0
    batch: int = 32
    lr: float = 3e-4
    temperature: float = 2.0
    hidden: float = 1.0
    embeddings: bool = False
    patience: int = 4

    def __post_init__(self) -> None:
        as_declared(self)
        falling = list(self.assistants) == sorted(set(self.assistants), reverse=True)
        if not self.assistants or min(self.assistants) < 1 or not falling:
            raise InputError(
                f"assistants={self.assistants}", expected="layer counts that fall, such as (4, 3)",
                remedy="correct the recipe",
            )  # fmt: skip
        self.stage()

    def stage(self) -> DistillConfig:
        """One stage's distillation."""
        return DistillConfig(
            epochs=self.epochs / (len(self.assistants) + 1), batch=self.batch, lr=self.lr,
            temperature=self.temperature, hidden=self.hidden, embeddings=self.embeddings, patience=self.patience,
        )  # fmt: skip

    @property
    def label(self) -> str:
        return f"via {', '.join(map(str, self.assistants))} layers, {self.epochs:g} epochs"


def distill_progressively(model: Any, config: ProgressiveConfig, calibration: Calibration) -> Any:
    """The student after ``len(assistants) + 1`` distillations; costs about what one of as many epochs would.

    Raises Rejected without an original, for assistants that are not between the two in size, and as ``distill`` does.
    """
    if calibration.original is None:
        raise Rejected("progressive", "progressive distillation needs the original model")
    adapter = adapter_of(model, what="progressive distillation")
    most, least = (len(adapter.layers(m.hf)) for m in (calibration.original, model))
    # A student that is only narrower has as many layers as its teacher: its assistants may be of any depth.
    if not all(count < most and (least == most or count >= least) for count in config.assistants):
        raise Rejected("progressive", f"assistants of {config.assistants} layers are not between {most} and {least}")
    teacher = calibration.original
    for number, count in enumerate(config.assistants):
        teacher = _assistant(teacher, count, config, _at(calibration, f"assistant{number}"))
    return distill(model, config.stage(), replace(_at(calibration, "student"), original=teacher))


def _assistant(teacher: Any, count: int, config: ProgressiveConfig, given: Calibration) -> Any:
    """A shallower copy of ``teacher``, taught by it; taken from disk when a killed run had finished it."""
    folder = None if given.state is None else given.state / "model"
    if folder is not None and (folder / "config.json").is_file():
        return _opened(teacher, folder)
    # A teacher's weights ask for no gradients, and neither does a copy of them.
    made = drop_layers(copy.deepcopy(teacher).requires_grad_(True), LayersConfig(count=count), given)
    made = distill(made, config.stage(), replace(given, original=teacher))
    if folder is not None and given.rehearse is None:
        _keep(made, folder)
    return made


def _keep(made: Any, folder: Path) -> None:
    part = folder.with_name("model.part")
    save_model(made.hf, part)
    part.replace(folder)


def _opened(like: Any, folder: Path) -> Any:
    attention = like.hf.config._attn_implementation or "sdpa"
    hf = open_model(type(like.hf), folder, attention=attention, dtype=torch.float32)
    pooling, normalize = getattr(like, "pooling", None), getattr(like, "normalize", False)
    return get_task(like.task).wrap_model(hf, pooling=pooling, normalize=normalize).eval()


def _at(given: Calibration, name: str) -> Calibration:
    return given if given.state is None else replace(given, state=given.state / name)
