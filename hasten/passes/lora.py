"""LoRA: the model learns through thin additions to its frozen matrices, which are then added in.

Takes a wrapper, gives it back in the same shape. Only W + (alpha / rank) B A with A [R, I] and B [O, R] is trained, and
what lies outside the layers (pooler, head): the training keeps moments for a few percent of the weights.

Source: Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models"; the additions are those of ``peft``.

Legend: O outputs, I inputs of a matrix, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from hasten.models.surgery import replace_module
from hasten.passes.calibration import Calibration
from hasten.passes.distillation import AdditionConfig, distill, epochs_text
from hasten.passes.family import adapter_of
from hasten.passes.matrices import encoder_matrices
from hasten.passes.settings import as_declared
from hasten.records import InputError, MissingDependency


@dataclass(frozen=True, slots=True)
class LoraConfig(AdditionConfig):
    """``rank`` and ``alpha`` of the additions, and how they learn."""

    kind: ClassVar[str] = "lora"
    rank: int = 16
    alpha: float = 32.0

    def __post_init__(self) -> None:
        as_declared(self)
        if not 1 <= self.rank <= 4096 or not 0 < self.alpha < float("inf"):
            raise InputError(
                f"rank={self.rank}, alpha={self.alpha}", expected="a rank from 1 to 4096 and an alpha above 0",
                remedy="correct the recipe",
            )  # fmt: skip
        self.lesson()

    @property
    def label(self) -> str:
        return f"LoRA rank {self.rank}, {epochs_text(self.epochs)}"


def train_lora(model: Any, config: LoraConfig, calibration: Calibration) -> Any:
    """The wrapper with the trained additions in its weights; a step costs about a third less than in ``distill``.

    Raises Rejected as ``distill`` does and for a layer that holds no plain matrices, MissingDependency without peft.
    """
    names = [m.name for m in encoder_matrices(model, what="LoRA")]
    with additions(model, names, rank=config.rank, alpha=config.alpha, seed=calibration.seed):
        distill(model, config.lesson(), calibration)
    return model


def as_it_is(linear: Any) -> Any:
    """A frozen matrix that is an fp32 matrix already."""
    return linear


@contextmanager
def additions(
    model: Any, names: Sequence[str], *, rank: int, alpha: float, seed: int,
    plain: Callable[[Any], nn.Linear] = as_it_is,
) -> Iterator[None]:  # fmt: skip
    """Within, the matrices ``names`` are frozen and have additions; after it, these are part of the matrices.

    ``plain`` makes an fp32 matrix of what ``names`` hold, if they hold another form.
    """
    try:
        from peft import LoraConfig as Additions
        from peft.tuners.lora import LoraModel
    except ImportError as error:
        raise MissingDependency("peft", extra="peft") from error
    torch.manual_seed(seed)
    tuner = LoraModel(model.hf, {"default": Additions(r=rank, lora_alpha=alpha, target_modules=list(names))}, "default")
    train_the_head(model)
    try:
        yield
    finally:
        found = {name: model.hf.get_submodule(name).get_delta_weight("default").detach() for name in names}
        tuner.unload()
        for name, delta in found.items():
            linear = plain(model.hf.get_submodule(name))
            linear.weight = nn.Parameter(linear.weight.detach() + delta)
            replace_module(model.hf, name, linear)
        model.requires_grad_(True)


def train_the_head(model: Any) -> None:
    """Let what comes after the layers learn: it is small, and has to follow them."""
    adapter = adapter_of(model, what="LoRA")
    blocks = [adapter.embeddings(model.hf), *(stack.layers for stack in adapter.stacks(model.hf))]
    inner = {id(p) for block in blocks for p in block.parameters()} | {id(p) for p in adapter.computed(model.hf)}
    for parameter in model.hf.parameters():
        if id(parameter) not in inner:
            parameter.requires_grad_(True)
