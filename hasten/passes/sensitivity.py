"""Which parts of an encoder may be int8: measured one by one, chosen together, verified together.

Takes a wrapper, gives the same wrapper with a list of names in its config, ``hasten_keep_fp32``: the matrices that a
runtime's exporter must leave in fp32. Weights stay as they are. A part is the attention, the first or the second FFN
matrix of a layer.

A part's sensitivity is what the outputs lose when it alone computes in int8: the mean KL divergence of the classes'
probabilities in nats; for embeddings, and for a single output, the squared error relative to the outputs' squared size.
The measure is that of Cai et al. 2020, "ZeroQ". Parts to keep are then

* the most sensitive ones, one after the other, until the loss of all others together is within ``bound``; or
* an integer program: the least sum of sensitivities whose parts save ``save_ms`` together, as in Hubara et al. 2021,
  "Accurate Post Training Quantization With Small Calibration Sets".

Losses do not add up, so either choice is measured as a whole.

Legend: B rows, C outputs, P parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from hasten.models.precision import keep_fp32
from hasten.passes.calibration import Batch, Calibration, Progress, length_of, padded
from hasten.passes.fake_quant import Range, fake_quantized
from hasten.passes.matrices import Matrix, encoder_matrices
from hasten.passes.settings import as_declared
from hasten.records import InputError, Rejected

_BATCH = 32
_KINDS = 3  # of parts in a layer
# Within it, these maps compute in other numbers.
Numbers = Callable[[Sequence[nn.Linear]], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class PrecisionConfig:
    """``bound`` on the loss of all int8 parts together; activations are rounded ``per`` token, or per request as
    dynamic int8 kernels do (``"tensor"``). With ``save_ms`` the int8 parts must save that much, and ``savings_ms`` says
    what each saves: attention, up and down of every layer, or three numbers that hold for all layers."""

    kind: ClassVar[str] = "mixed_precision"
    bound: float = 0.01
    per: Range = "tensor"
    rows: int = 128
    save_ms: float | None = None
    savings_ms: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        as_declared(self)
        check_bound(self.bound, self.rows)
        if (self.save_ms is None) != (not self.savings_ms) or len(self.savings_ms) % _KINDS:
            raise InputError(
                f"save_ms={self.save_ms} with {len(self.savings_ms)} savings_ms",
                expected="neither, or both with three savings or three for each layer",
                remedy="measure what each part saves, or leave both out",
            )
        if self.save_ms is not None and self.save_ms <= 0:
            raise InputError(f"save_ms={self.save_ms}", expected="above 0 ms", remedy="correct the recipe")

    @property
    def label(self) -> str:
        aim = f"loss <= {self.bound:.3g}" if self.save_ms is None else f"saves {self.save_ms:.3g} ms"
        return f"mixed int8 {aim}"


def check_bound(bound: float, rows: int) -> None:
    """Raise InputError for a loss or a number of rows that no choice can be made by."""
    if not 0 < bound < float("inf") or rows < 1:
        raise InputError(
            f"bound={bound}, rows={rows}", expected="a bound above 0 and at least one row", remedy="correct the recipe"
        )


@dataclass(frozen=True, slots=True)
class LayerPart:
    """Matrices that are int8 together, or not."""

    name: str
    matrices: tuple[Matrix, ...]


def choose_precision(model: Any, config: PrecisionConfig, calibration: Calibration) -> Any:
    """The wrapper with ``model.hf.config.hasten_keep_fp32``, a list of module names.

    Costs a forward pass a row for each part, and as many again for the list. Raises Rejected for a family without an
    adapter, when no part can be int8 within the bound, or when the savings cannot be had.
    """
    int8 = partial(fake_quantized, bits=8, per=config.per)
    trial = Trial(model, calibration, rows=config.rows, numbers=int8, what="mixed precision")
    alone = trial.sensitivities()
    if config.save_ms is None:
        kept = kept_by_list(trial, alone, bound=config.bound, kind=config.kind)
    else:
        kept = _kept_by_program(trial, alone, config=config)
    joint = trial.loss([i for i in range(len(trial.parts)) if i not in kept])
    keep_fp32(model.hf, [m.name for i in sorted(kept) for m in trial.parts[i].matrices])
    stays = ", ".join(trial.parts[i].name for i in sorted(kept)) or "nothing"
    calibration.listen(Progress(f"mixed precision: {stays} stays fp32, loss {joint:.3g}", 1, 1, note=True))
    return model


def kept_by_list(trial: Trial, alone: Sequence[float], *, bound: float, kind: str) -> set[int]:
    """The fewest of the most sensitive parts without which the others' joint loss is within ``bound``."""
    order = sorted(range(len(alone)), key=lambda i: -alone[i])
    for count in range(len(order)):
        if trial.loss(order[count:]) <= bound:
            return set(order[:count])
    raise Rejected(
        kind, f"even {trial.parts[order[-1]].name} alone loses {alone[order[-1]]:.3g}, and {bound:g} is allowed",
    )  # fmt: skip


def _kept_by_program(trial: Trial, alone: Sequence[float], *, config: PrecisionConfig) -> set[int]:
    count = len(trial.parts)
    savings = config.savings_ms * (count // _KINDS) if len(config.savings_ms) == _KINDS else config.savings_ms
    if len(savings) != count:
        raise Rejected("mixed_precision", f"{len(savings)} savings_ms for a model of {count} parts")
    assert config.save_ms is not None
    chosen = least_loss(alone, savings, at_least=config.save_ms)
    if chosen is None:
        raise Rejected(
            "mixed_precision", f"all parts together save {sum(s for s in savings if s > 0):.4g} ms, less than the "
            f"{config.save_ms:.4g} ms that were asked for",
        )  # fmt: skip
    joint = trial.loss(chosen)
    if joint > config.bound:
        raise Rejected(
            "mixed_precision", f"the parts that save {config.save_ms:.4g} ms at the least loss lose {joint:.3g} "
            f"together, and {config.bound:g} is allowed",
        )  # fmt: skip
    return set(range(count)) - set(chosen)


def least_loss(losses: Sequence[float], savings: Sequence[float], *, at_least: float) -> list[int] | None:
    """The parts with the least sum of losses whose savings reach ``at_least``; ``None`` when none do."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    cost = np.asarray(losses, dtype=np.float64)
    scale = float(np.abs(cost).max()) or 1.0  # the solver's tolerances are absolute, and losses can be tiny
    found = milp(
        cost / scale, integrality=np.ones(len(cost)), bounds=Bounds(0, 1), options={"mip_rel_gap": 0.0},
        constraints=LinearConstraint(np.asarray(savings, dtype=np.float64)[None], lb=at_least),
    )  # fmt: skip
    return None if found.x is None else [i for i, value in enumerate(found.x) if value > 0.5]


class Trial:
    """A wrapper's parts, and what the outputs lose when some of them compute in other ``numbers``."""

    def __init__(self, model: Any, calibration: Calibration, *, rows: int, numbers: Numbers, what: str) -> None:
        self.model, self.numbers, self.what, self.calibration = model, numbers, what, calibration
        self.parts = parts_of(model, what=what)
        self.batches = even_batches(calibration, rows=rows)
        self.reference = self._outputs()

    def sensitivities(self) -> list[float]:
        """[P]: the loss of each part alone."""
        found = []
        for number in range(len(self.parts)):
            self.calibration.listen(Progress(f"{self.what}: part by part", number, len(self.parts)))
            found.append(self.loss([number]))
        return found

    def loss(self, chosen: Sequence[int]) -> float:
        """The loss with these parts in the other numbers together."""
        linears = [matrix.linear for i in chosen for matrix in self.parts[i].matrices]
        with self.numbers(linears):
            found = divergence(self.reference, self._outputs(), says=self.model.says)
        if not np.isfinite(found):
            raise Rejected("numbers", f"{self.what}: the outputs are not numbers on the calibration rows")
        return found

    @torch.inference_mode()
    def _outputs(self) -> list[Tensor]:
        """Rows [R, K] of every batch."""
        return [self.model.rows(self.model(**batch), batch).double() for batch in self.batches]


def parts_of(model: Any, *, what: str = "mixed precision") -> list[LayerPart]:
    """Attention, up and down of every layer, first layer first."""
    groups: dict[str, list[Matrix]] = {}
    for matrix in encoder_matrices(model, what=what):
        groups.setdefault(f"layer {matrix.layer} {matrix.part}", []).append(matrix)
    return [LayerPart(name, tuple(matrices)) for name, matrices in groups.items()]


def divergence(reference: Sequence[Tensor], found: Sequence[Tensor], *, says: str) -> float:
    """Mean KL(reference || found) over rows of logits [R, K], or relative squared error of vectors [R, K]."""
    both = list(zip(reference, found, strict=True))
    if says == "vectors" or reference[0].shape[1] == 1:  # one output has no distribution
        return sum(float((b - a).square().sum()) for a, b in both) / sum(float(a.square().sum()) for a, _ in both)
    logs = [(a.log_softmax(dim=1), b.log_softmax(dim=1)) for a, b in both]
    return sum(float((a.exp() * (a - b)).sum()) for a, b in logs) / sum(len(a) for a, _ in logs)


def even_batches(calibration: Calibration, *, rows: int) -> list[Batch]:
    """The first ``rows`` rows in batches of one length each: padding would widen the ranges of activations."""
    groups: dict[int, list[int]] = {}
    for number, row in enumerate(calibration.first(rows)):
        groups.setdefault(length_of(row), []).append(number)
    return [
        padded([calibration.rows[i] for i in numbers[start : start + _BATCH]])
        for _, numbers in sorted(groups.items())
        for start in range(0, len(numbers), _BATCH)
    ]
