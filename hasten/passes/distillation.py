"""Distillation: the pruned model learns from the original what it lost.

Takes a wrapper (the student, already of its final shape), gives it back trained on the calibration rows, labelled or
not, and on extra unlabelled rows where there are any.

Sources: logits at temperature T with weight T^2 (Hinton et al. 2015), those of a decoder at every token; hidden states,
evenly mapped (Romero et al. 2015, Jiao et al. 2020 "TinyBERT"); attention relations, the KL of softmax(Q Q^T), (K K^T),
(V V^T) over the last layer (Wang et al. 2021 "MiniLMv2"). Several teachers' outputs are averaged (Timiryasov and Tastet
2023).

Legend: B rows, L tokens, H hidden size, C outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hasten.passes.calibration import Calibration, check_rows, padded, real
from hasten.passes.distributions import Distributions
from hasten.passes.family import adapter_of
from hasten.passes.relations import Relations
from hasten.passes.settings import as_declared
from hasten.passes.targets import Targets, watched
from hasten.passes.teachers import adapter_of_teacher, teachers_for
from hasten.passes.training import Schedule, train
from hasten.records import InputError, Rejected
from hasten.tasks.wrappers import NextTokenWrapper


@dataclass(frozen=True, slots=True)
class DistillConfig:
    """What the student imitates (weights of the losses) and for how long.

    ``labels``: weight of the cross entropy with the user's labels. ``teachers``: folders of further or other
    teachers, of any family, whose outputs are averaged; inner states are the first one's. Empty means the original
    model. ``embeddings``: train the word embeddings too (slow on a CPU, and they are good already).
    """

    kind: ClassVar[str] = "distill"
    epochs: float = 6.0
    batch: int = 32
    lr: float = 3e-4
    temperature: float = 2.0
    logits: float = 1.0
    hidden: float = 1.0
    relations: float = 0.0
    labels: float = 0.0
    embeddings: bool = False
    patience: int = 4
    teachers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        as_declared(self)
        weights = {name: getattr(self, name) for name in ("logits", "hidden", "relations", "labels")}
        if min(weights.values()) < 0 or max(weights.values()) == 0 or not 0 < self.temperature <= 100:
            raise InputError(
                f"{', '.join(f'{name}={value}' for name, value in weights.items())}, temperature={self.temperature}",
                expected="weights of zero or more, one of them above zero, and a temperature from 0 to 100",
                remedy="correct the recipe",
            )
        if self.patience < 1:
            raise InputError(
                f"patience={self.patience}", expected="at least one score without a better one before it stops",
                remedy="correct the recipe",
            )  # fmt: skip
        self.schedule()

    def schedule(self) -> Schedule:
        return Schedule(epochs=self.epochs, batch=self.batch, lr=self.lr, patience=self.patience)

    @property
    def imitates(self) -> bool:
        """Is there anything to be learnt from a teacher?"""
        return max(self.logits, self.hidden, self.relations) > 0

    @property
    def label(self) -> str:
        return f"distilled {epochs_text(self.epochs)}"


@dataclass(frozen=True, slots=True)
class AdditionConfig:
    """What every pass shares that trains a few additions to a frozen model: ``labels``, ``logits`` and ``hidden`` weigh
    the losses as in :class:`DistillConfig`. With ``labels=1, logits=0, hidden=0`` it is plain fine-tuning, and no
    teacher is asked."""

    epochs: float = 4.0
    batch: int = 32
    lr: float = 2e-3
    logits: float = 1.0
    hidden: float = 1.0
    labels: float = 0.0

    def lesson(self) -> DistillConfig:
        """What it learns, and how; raises InputError for values out of range."""
        return DistillConfig(
            epochs=self.epochs, batch=self.batch, lr=self.lr, logits=self.logits, hidden=self.hidden,
            labels=self.labels,
        )  # fmt: skip


def epochs_text(epochs: float) -> str:
    """How long, for a label."""
    return f"{epochs:g} epoch{'s' * (epochs != 1)}"


def distill(model: Any, config: DistillConfig, calibration: Calibration) -> Any:
    """The student with the weights that scored best on selection (the last ones without a score).

    Takes about three forward passes of the student a row and epoch, and one of the teacher a row. Raises InputError
    without any rows, and Rejected for a teacher that does not fit, too few rows, labels that are not there, or a loss
    that is not a number from the start.
    """
    check_rows([*calibration.rows, *calibration.extra])
    if config.imitates and calibration.original is None and not config.teachers:
        raise Rejected("distill", "distillation needs a teacher: the original model or one named in the recipe")
    if not config.imitates and calibration.targets is None:
        raise Rejected("distill", "there is nothing to learn from: no teacher is asked, and the rows have no labels")
    teachers = teachers_for(config.teachers, calibration) if config.imitates else []
    student = _Student(model, teachers, config, calibration)
    for parameter in student.frozen():
        parameter.requires_grad_(False)
    train(
        student, student.loss, rows=student.rows, schedule=config.schedule(), given=student.scored(calibration),
        what=f"distilling {config.epochs:g} epochs", config=config,
    )  # fmt: skip
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())  # packed integers cannot
    return model


class _Student(nn.Module):
    """The student, a projection where its width differs from the teacher's, and the loss."""

    def __init__(self, model: Any, teachers: Sequence[Any], config: DistillConfig, given: Calibration) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.rows = [*given.rows, *given.extra] if teachers else list(given.rows)
        self.given, self.labelled = given, 0 if given.targets is None else len(given.targets)
        self.targets: Targets | None = None
        self.speech: Distributions | None = None
        if isinstance(model, NextTokenWrapper):
            self.speech = Distributions(model, teachers if config.logits else (), temperature=config.temperature)
        self.relations: Relations | None = None
        self.project: nn.Module = nn.Identity()
        if teachers:
            self._look_up_to(teachers, seed=given.seed)

    def _look_up_to(self, teachers: Sequence[Any], *, seed: int) -> None:
        """What is to be imitated of them; the first one's inner states."""
        first = teachers[0]
        depths: tuple[int, ...] = ()
        if self.config.hidden:
            own = adapter_of(self.model, what="distillation").stacks(self.model.hf)[0].depth
            depths = depth_map(own, adapter_of_teacher(first, what="hidden states").stacks(first.hf)[0].depth)
            narrow, wide = self.model.hf.config.hidden_size, first.hf.config.hidden_size
            if narrow != wide:
                torch.manual_seed(seed)
                self.project = nn.Linear(narrow, wide)
        if self.config.relations:
            self.relations = Relations(self.model, first)
        self.targets = Targets(teachers, self.rows, depths)

    def frozen(self) -> list[nn.Parameter]:
        computed = adapter_of(self.model, what="distillation").computed(self.model.hf)
        table = self.model.hf.get_input_embeddings()
        return [*computed, *(() if self.config.embeddings else table.parameters())]

    def scored(self, given: Calibration) -> Calibration:
        """The same calibration, whose ``validate`` looks at the student without the projection."""
        from dataclasses import replace

        validate = given.validate
        return given if validate is None else replace(given, validate=lambda _module: validate(self.model))

    def loss(self, index: Sequence[int]) -> Tensor:
        """Weighted sum of the losses on the rows ``index``, each a mean over rows or real tokens."""
        config = self.config
        batch = padded([self.rows[i] for i in index])
        outputs, states = self._forward(batch)
        total = self._label_loss(outputs, batch, index)
        if self.targets is None:
            return total
        wanted, states_wanted = self.targets.of(index)
        if config.logits:
            total = total + config.logits * self._output_loss(outputs, wanted, batch)
        if config.hidden:
            total = total + config.hidden * self._hidden_loss(states, states_wanted, real(batch, states[0]))
        if self.relations is not None:
            total = total + config.relations * self.relations.loss(batch)
        return total

    def _forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Outputs (a language model's last states) and the states after every layer, [B, L, H] each, in one pass."""
        with watched(adapter_of(self.model, what="distillation").layers(self.model.hf)) as caught:
            outputs = self.model(**batch) if self.speech is None else self.model.states(batch)
        return outputs, tuple(caught)

    def _output_loss(self, outputs: Tensor, wanted: Tensor, batch: dict[str, Tensor]) -> Tensor:
        if self.speech is not None:
            return self.speech.loss(outputs, wanted, batch)
        return output_loss(
            self.model.rows(outputs, batch), self.model.rows(wanted, batch), says=self.model.says,
            temperature=self.config.temperature,
        )  # fmt: skip

    def _hidden_loss(self, states: Sequence[Tensor], wanted: Tensor, mask: Tensor) -> Tensor:
        """Squared error over real tokens, in units of the teacher's own variance, mean over depths."""
        errors = []
        for own, target in zip(states, wanted, strict=True):
            goal = target[mask]
            errors.append((self.project(own)[mask] - goal).square().mean() / goal.var().clamp(min=1e-6))
        return torch.stack(errors).mean()

    def _label_loss(self, outputs: Tensor, batch: dict[str, Tensor], index: Sequence[int]) -> Tensor:
        """The task's own loss, a mean over the rows that have a target; extra rows have none."""
        known = [n for n, i in enumerate(index) if i < self.labelled]
        if not self.config.labels or not known:
            return outputs.new_zeros(())
        goal = self.given.targets_of([index[n] for n in known])
        if self.speech is not None:
            outputs = self.speech.said(outputs, batch)
        loss: Tensor = self.model.loss(outputs[known], goal) / len(known)
        return self.config.labels * loss


def output_loss(outputs: Tensor, wanted: Tensor, *, says: str, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) at temperature T for rows of logits [R, K]; 1 - cosine for vectors, and the squared
    error of single numbers."""
    if outputs.shape[-1] == 1:
        return (outputs - wanted).square().mean()
    if says == "vectors":
        return (1.0 - nn.functional.cosine_similarity(outputs, wanted, dim=-1)).mean()
    own = nn.functional.log_softmax(outputs / temperature, dim=-1)
    theirs = nn.functional.log_softmax(wanted / temperature, dim=-1)
    return temperature**2 * nn.functional.kl_div(own, theirs, log_target=True, reduction="batchmean")


def depth_map(own: int, theirs: int) -> tuple[int, ...]:
    """Which of the teacher's hidden states each student layer should reproduce: 3 of 6 layers -> 2, 4, 6."""
    return tuple(round((i + 1) * theirs / own) for i in range(own))
