"""The training loop that every recovery pass shares: seeded, stoppable, resumable, and wary of NaN.

Takes a wrapper, a loss per batch and a schedule; leaves the best weights in the wrapper. Knows nothing of what the
loss means. Scores come from ``calibration.validate`` on rows that are not in here; without it the last weights stay.

A killed run goes on from its last saved state, an interrupted one from the step that it was at: order of rows and
learning rate are functions of the step, so weights, moments and standing are all that has to be remembered.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hasten.passes.calibration import Calibration, Progress, Row, length_of
from hasten.passes.training_state import DamagedState, identity, read_state, write_state
from hasten.records import InputError, Rejected

_FILE = "training.safetensors"
_SAVE_EVERY_S = 30.0
_CHUNK = 32
FEWEST_ROWS = 16
_REHEARSED = 6


@dataclass(frozen=True, slots=True)
class Schedule:
    """AdamW with a linear warm-up and a linear decay to zero.

    ``epochs`` may be a fraction; a score is taken ``checks`` times an epoch and training stops when ``patience`` of
    them in a row brought nothing better.
    """

    epochs: float = 6.0
    batch: int = 32
    lr: float = 3e-4
    warmup: float = 0.06
    weight_decay: float = 0.01
    checks: int = 1
    patience: int = 4

    def __post_init__(self) -> None:
        for name, low, high in (("epochs", 0.0, 1000.0), ("batch", 0, 4096), ("lr", 0.0, 1.0), ("checks", 0, 100)):
            if not low < getattr(self, name) <= high:
                raise InputError(
                    f"{name}={getattr(self, name)}", expected=f"more than {low:g} and at most {high:g}",
                    remedy="correct the recipe",
                )  # fmt: skip

    def steps(self, rows: int) -> int:
        """Optimizer steps over ``rows`` rows."""
        return max(1, round(self.epochs * math.ceil(rows / self.batch)))

    def rate(self, step: int, total: int) -> float:
        """Share of ``lr`` at a step."""
        warm = max(1, round(self.warmup * total))
        return (step + 1) / warm if step < warm else max(0.0, (total - step) / max(1, total - warm))


@dataclass(frozen=True, slots=True)
class Standing:
    """Where training is: the next step, the best score and when it was had, scores since without a better one, and the
    step of the last score."""

    step: int = 0
    best_score: float | None = None
    best_step: int = 0
    stale: int = 0
    scored: int = -1


Loss = Callable[[Sequence[int]], Tensor]


def train(
    model: nn.Module, loss: Loss, *, rows: Sequence[Row], schedule: Schedule, given: Calibration, what: str,
    config: object = None,
) -> Standing:  # fmt: skip
    """Minimise ``loss`` (a function of row numbers) over all parameters of ``model`` that ask for gradients.

    Raises Rejected when there are too few rows, or when the loss is not a number before anything good was reached;
    after that the last good weights are kept. A state that was left behind is gone on with only if it is of the same
    training: of this ``config`` and schedule, from these weights, rows and original. A KeyboardInterrupt leaves one of
    the step that it came at.
    """
    if len(rows) < FEWEST_ROWS:
        raise Rejected("training", f"{what}: {len(rows)} rows are too few to learn from, {FEWEST_ROWS} are needed")
    loop = _Loop(model, loss, schedule, given, what, total=schedule.steps(len(rows)))
    if given.rehearse is not None:
        given.rehearse(loop.rehearsed_s(rows))
        return loop.standing
    if loop.state is not None:
        loop.key = identity(
            repr((schedule, config, given.seed, what, loop.total, list(loop.named))), modules=(model, given.original),
            rows=rows, targets=given.targets or (),
        )  # fmt: skip
    return loop.run(rows)


class _Loop:
    """One training; everything that outlives a kill goes through :meth:`_save`."""

    def __init__(
        self, model: nn.Module, loss: Loss, schedule: Schedule, given: Calibration, what: str, *, total: int
    ) -> None:
        self.model, self.loss, self.schedule, self.given = model, loss, schedule, given
        self.what, self.total = what, total
        self.state: Path | None = None if given.state is None else given.state / _FILE
        self.named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        matrices = {"params": [p for p in self.named.values() if p.ndim > 1], "weight_decay": schedule.weight_decay}
        vectors = {"params": [p for p in self.named.values() if p.ndim <= 1], "weight_decay": 0.0}
        self.optimizer = torch.optim.AdamW([matrices, vectors], lr=schedule.lr, fused=True)
        self.best: dict[str, Tensor] = {}
        self.standing = Standing()
        self.key = ""
        self._torn = False

    def run(self, rows: Sequence[Row]) -> Standing:
        self._restore()
        try:
            noted = self._learn(rows)
        except KeyboardInterrupt:
            self._save_for_later()
            raise
        self._put_back()
        if self.standing.step < self.total and not noted:  # whoever listens should not wait for the rest
            said = Progress(f"{self.what}: no better for long", self.standing.step, self.standing.step)
            self.given.listen(replace(said, score=self.standing.best_score))
        return self.standing

    def _learn(self, rows: Sequence[Row]) -> bool:
        """All steps that are still to come; True when a note says why it stopped before the last one."""
        saved = time.monotonic()
        every = max(1, round(math.ceil(len(rows) / self.schedule.batch) / self.schedule.checks))
        self._score(every)  # of the first weights, or of those that a kill left unscored
        for index in self._order(rows):
            if self.standing.stale >= self.schedule.patience:
                return False
            if self._late() or not self._step(index):
                return True
            self._score(every)
            if time.monotonic() - saved > _SAVE_EVERY_S:
                self._save()
                saved = time.monotonic()
            self._tell()
        return False

    def rehearsed_s(self, rows: Sequence[Row]) -> float:
        """Seconds that the whole training would take, from a few steps on weights that are put back."""
        before = {name: p.detach().clone() for name, p in self.named.items()}
        order = iter(self._order(rows))
        self._step(next(order))  # the first step allocates what the others reuse
        started = time.perf_counter()
        steps = sum(self._step(index) for index, _ in zip(order, range(_REHEARSED), strict=False)) or 1
        per_step = (time.perf_counter() - started) / steps
        self.best = before
        self._put_back()
        scoring = 0.0
        if self.given.validate is not None:
            started = time.perf_counter()
            self.given.validate(self.model)
            scoring = (time.perf_counter() - started) * (1 + self.schedule.epochs * self.schedule.checks)
        return per_step * self.total + scoring

    # ------------------------------------------------------------------ one step

    def _order(self, rows: Sequence[Row]) -> Iterator[Sequence[int]]:
        """Row numbers of every batch that is still to come; rows of like length share a batch, chunk by chunk."""
        lengths = np.array([length_of(row) for row in rows])
        per_epoch = math.ceil(len(rows) / self.schedule.batch)
        for step in range(self.standing.step, self.total):
            epoch, place = divmod(step, per_epoch)
            if place == 0 or step == self.standing.step:
                batches = _epoch(lengths, self.schedule.batch, np.random.default_rng([self.given.seed, epoch]))
            yield batches[place]

    def _step(self, index: Sequence[int]) -> bool:
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.lr * self.schedule.rate(self.standing.step, self.total)
        value = self.loss(index)
        if not torch.isfinite(value):
            return self._not_a_number()
        self.optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(list(self.named.values()), 1.0)
        self._torn = True  # until weights, moments and standing are of the same step
        self.optimizer.step()
        self.standing = replace(self.standing, step=self.standing.step + 1)
        self._torn = False
        return True

    def _late(self) -> bool:
        """No time for another step: what was learnt since the last score gets one."""
        if time.monotonic() < self.given.deadline:
            return False
        self._score()
        self._tell(f"{self.what}: stopped by the clock at step {self.standing.step} of {self.total}", note=True)
        return True

    def _not_a_number(self) -> bool:
        """Stop with the last good weights; without any there is nothing to keep."""
        at = f"the loss is not a number at step {self.standing.step + 1} of {self.total}"
        if not self.best or not self.standing.best_step:
            raise Rejected("training", f"{self.what}: {at}; a lower learning rate may help")
        self._tell(f"{self.what}: {at}; keeping the best so far", note=True)
        return False

    # ------------------------------------------------------------------ scores and state

    def _score(self, every: int = 1) -> None:
        """Score the weights, when it is time to and they were not yet, and keep them when they are the best."""
        step = self.standing.step
        if self.given.validate is None or self.standing.scored == step or (step % every and step != self.total):
            return
        score = self.given.validate(self.model)
        self._torn = True
        if self.standing.best_score is None or score > self.standing.best_score:
            self.best = {name: p.detach().clone() for name, p in self.named.items()}
            self.standing = replace(self.standing, best_score=score, best_step=step, stale=0, scored=step)
        else:
            self.standing = replace(self.standing, stale=self.standing.stale + 1, scored=step)
        self._torn = False
        self._save()

    def _put_back(self) -> None:
        with torch.no_grad():
            for name, kept in self.best.items():
                self.named[name].copy_(kept)

    def _tell(self, what: str | None = None, *, note: bool = False) -> None:
        self.given.listen(Progress(what or self.what, self.standing.step, self.total, self.standing.best_score, note))

    def _save(self) -> None:
        """Weights, moments and standing in one file, replaced whole."""
        if self.state is None:
            return
        tensors: dict[str, Tensor] = {f"now/{name}": p for name, p in self.named.items()}
        tensors |= {f"best/{name}": kept for name, kept in self.best.items()}
        for name, p in self.named.items():
            for key, value in self.optimizer.state.get(p, {}).items():
                tensors[f"{key}/{name}"] = value
        write_state(self.state, tensors, facts={"standing": json.dumps(asdict(self.standing)), "key": self.key})

    def _save_for_later(self) -> None:
        """Of an interrupted training. In the midst of a step the last saved state is what there is."""
        if not self._torn:
            self._save()
        at = f"interrupted at step {self.standing.step} of {self.total}"
        self._tell(f"{self.what}: {at}" + (", can be gone on with" if self.state else ""), note=True)

    def _restore(self) -> None:
        """Go on from the saved state, if it is of this training."""
        try:
            found = None if self.state is None else read_state(self.state, key=self.key)
        except DamagedState as error:
            self._tell(f"{self.what}: begun again, as its saved state is damaged ({error})", note=True)
            return
        if found is None:
            return
        facts, tensors = found
        self.standing = Standing(**json.loads(facts["standing"]))
        for key, tensor in tensors.items():
            part, _, name = key.partition("/")
            if part == "now":
                self.named[name].data.copy_(tensor)
            elif part == "best":
                self.best[name] = tensor
            else:
                self.optimizer.state[self.named[name]][part] = tensor


def _epoch(lengths: np.ndarray[Any, Any], batch: int, rng: np.random.Generator) -> list[list[int]]:
    """One epoch's batches: shuffled, sorted by length within chunks of batches, the batches shuffled again."""
    order = rng.permutation(len(lengths))
    batches = []
    for start in range(0, len(order), batch * _CHUNK):
        chunk = order[start : start + batch * _CHUNK]
        chunk = chunk[np.argsort(lengths[chunk], kind="stable")]
        batches += [chunk[i : i + batch].tolist() for i in range(0, len(chunk), batch)]
    # Only the last batch may be short; which one it is must not depend on the sort.
    return [batches[i] for i in rng.permutation(len(batches))]
