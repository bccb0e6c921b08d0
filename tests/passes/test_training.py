"""The training loop: what a kill, a NaN, a plateau and a rehearsal leave behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hasten.passes.calibration import Calibration, Progress
from hasten.passes.training import Schedule, Standing, train
from hasten.records import InputError, Rejected

ROWS = [{"input_ids": np.full((1, 2 + n % 5), n, dtype=np.int64)} for n in range(40)]
GOAL = torch.linspace(-1, 1, 6).view(2, 3)
SCHEDULE = Schedule(epochs=6, batch=8, lr=0.05, patience=100)


class Killed(BaseException):
    """An end that leaves no time for anything."""


def model() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(3, 2)


def loss_of(linear: nn.Linear, index: Sequence[int]) -> Tensor:
    generator = torch.Generator().manual_seed(sum(index))
    inputs = torch.randn(len(index), 3, generator=generator)
    return (linear(inputs) - inputs @ GOAL.T).square().mean()


def distance(linear: nn.Module) -> float:
    assert isinstance(linear, nn.Linear)
    return -float((linear.weight.detach() - GOAL).square().sum())


def given(state: Path | None = None, validate: Callable[[nn.Module], float] | None = distance) -> Calibration:
    return Calibration(ROWS, validate=validate, seed=4, state=state)


def run(linear: nn.Linear, calibration: Calibration, loss: Callable[[Sequence[int]], Tensor] | None = None) -> Standing:
    wanted = loss or (lambda index: loss_of(linear, index))
    return train(linear, wanted, rows=ROWS, schedule=SCHEDULE, given=calibration, what="learning")


def test_it_learns_and_keeps_the_best() -> None:
    linear = model()
    before = distance(linear)
    standing = run(linear, given())
    assert distance(linear) > 0.2 * before
    assert standing.best_score == pytest.approx(distance(linear))
    assert standing.step == 30


def test_a_killed_training_ends_like_one_that_was_not(tmp_path: Path) -> None:
    whole, killed = model(), model()
    run(whole, given(tmp_path / "a"))
    calls = 0

    def dying(index: Sequence[int]) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 18:
            raise Killed
        return loss_of(killed, index)

    with pytest.raises(Killed):
        run(killed, given(tmp_path / "b"), dying)
    again = model()  # a new process knows the state on disk alone
    seen: list[Sequence[int]] = []

    def counted(index: Sequence[int]) -> Tensor:
        seen.append(index)
        return loss_of(again, index)

    run(again, given(tmp_path / "b"), counted)
    assert len(seen) == 30 - 15, "goes on from the last score, after the third epoch"
    assert torch.allclose(again.weight, whole.weight, atol=1e-7)
    third = model()
    run(third, given(tmp_path / "b"), counted)
    assert torch.allclose(third.weight, whole.weight, atol=1e-7), "until the result is kept elsewhere, it is here"
    assert len(seen) == 30 - 15, "and costs no step"


def at_step(number: int) -> Callable[[Progress], None]:
    """Ctrl-C while somebody hears of this step."""

    def listen(progress: Progress) -> None:
        if progress.done == number and not progress.note:
            raise KeyboardInterrupt

    return listen


def in_score(number: int) -> Callable[[nn.Module], float]:
    """Ctrl-C in this score."""
    left = iter(range(number))

    def validate(linear: nn.Module) -> float:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return distance(linear)

    return validate


@pytest.mark.parametrize(
    ("changes", "done"),
    [({"listen": at_step(12)}, 12), ({"listen": at_step(15)}, 15), ({"validate": in_score(3)}, 15)],
    ids=["between scores", "after a score", "in a score"],
)
def test_an_interrupted_training_goes_on_at_its_step(changes: dict[str, Any], done: int, tmp_path: Path) -> None:
    whole, stopped, again = model(), model(), model()
    wanted = run(whole, given(tmp_path / "a"))
    with pytest.raises(KeyboardInterrupt):
        run(stopped, replace(given(tmp_path / "b"), **changes))
    heard: list[Progress] = []
    found = run(again, replace(given(tmp_path / "b"), listen=heard.append))
    assert [p.done for p in heard] == list(range(done + 1, 31))
    assert torch.equal(again.weight, whole.weight)
    assert found == wanted


def test_an_interruption_within_a_step_saves_no_half_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, stopped, again = model(), model(), model()
    run(whole, given(tmp_path / "a"))
    step, calls = torch.optim.AdamW.step, iter(range(17))

    def torn(self: torch.optim.AdamW, *args: Any) -> Any:
        made = step(self, *args)
        if next(calls, None) is None:
            raise KeyboardInterrupt  # the weights are a step further than all else
        return made

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", torn)
        with pytest.raises(KeyboardInterrupt):
            run(stopped, given(tmp_path / "b"))
    heard: list[Progress] = []
    run(again, replace(given(tmp_path / "b"), listen=heard.append))
    assert heard[0].done == 16, "goes on from the last score"
    assert torch.equal(again.weight, whole.weight)


def test_a_damaged_state_is_told_and_not_taken(tmp_path: Path) -> None:
    whole, stopped, again = model(), model(), model()
    run(whole, given(tmp_path / "a"))
    with pytest.raises(KeyboardInterrupt):
        run(stopped, replace(given(tmp_path / "b"), listen=at_step(12)))
    path = tmp_path / "b" / "training.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    heard: list[Progress] = []
    run(again, replace(given(tmp_path / "b"), listen=heard.append))
    assert heard[0].note
    assert "begun again, as its saved state is damaged" in heard[0].what
    assert len(heard) == 1 + 30
    assert torch.equal(again.weight, whole.weight)


def test_who_listens_hears_of_an_early_end() -> None:
    heard: list[Progress] = []
    linear = model()
    calibration = replace(given(validate=lambda _: 1.0), listen=heard.append)
    train(
        linear, partial(loss_of, linear), rows=ROWS, schedule=replace(SCHEDULE, patience=2), given=calibration, what="x"
    )
    assert (heard[-2].done, heard[-2].total) == (10, 30)
    assert (heard[-1].done, heard[-1].total) == (10, 10)


def test_a_state_of_another_training_is_not_taken(tmp_path: Path) -> None:
    linear, other = model(), model()
    short = replace(SCHEDULE, epochs=1)
    folder = tmp_path / "s"
    with pytest.raises(KeyboardInterrupt):
        train(linear, _after(4, linear), rows=ROWS, schedule=short, given=given(folder), what="x")
    assert list(folder.iterdir())
    assert run(other, given(folder)).step == 30


@pytest.mark.parametrize("change", ["rate", "weights", "config", "rows", "teacher"])
def test_a_finished_training_is_not_taken_for_one_of_the_same_length(tmp_path: Path, change: str) -> None:
    folder = tmp_path / "s"
    first, second = model(), model()
    train(first, partial(loss_of, first), rows=ROWS, schedule=SCHEDULE, given=given(folder), what="x", config=1)
    if change == "weights":
        with torch.no_grad():
            second.weight += 1.0
    heard: list[Progress] = []
    teacher = nn.Linear(3, 2) if change == "teacher" else None
    train(
        second, partial(loss_of, second), rows=ROWS[::-1] if change == "rows" else ROWS,
        schedule=replace(SCHEDULE, lr=2e-3) if change == "rate" else SCHEDULE,
        given=replace(given(folder), listen=heard.append, original=teacher), what="x",
        config=2 if change == "config" else 1,
    )  # fmt: skip
    assert len(heard) == 30, "every step was made"


def _after(count: int, linear: nn.Linear) -> Callable[[Sequence[int]], Tensor]:
    left = iter(range(count))

    def loss(index: Sequence[int]) -> Tensor:
        if next(left, None) in (None, count - 1):
            raise KeyboardInterrupt
        return loss_of(linear, index)

    return loss


def test_not_a_number_keeps_the_last_good_weights() -> None:
    linear, calls = model(), 0

    def failing(index: Sequence[int]) -> Tensor:
        nonlocal calls
        calls += 1
        return loss_of(linear, index) * (float("nan") if calls > 12 else 1.0)

    standing = run(linear, given(), failing)
    assert standing.step == 12
    assert torch.isfinite(linear.weight).all()
    assert standing.best_score == pytest.approx(distance(linear))


@pytest.mark.parametrize("validate", [None, distance], ids=["unscored", "scored"])
def test_not_a_number_from_the_start_is_a_rejection(validate: Callable[[nn.Module], float] | None) -> None:
    linear = model()
    with pytest.raises(Rejected, match="not a number at step 1 of 30"):
        run(linear, given(validate=validate), lambda index: loss_of(linear, index) * float("nan"))


def test_the_clock_ends_it_with_what_was_learnt() -> None:
    linear, seen = model(), []
    before = distance(linear)

    def counted(index: Sequence[int]) -> Tensor:
        seen.append(index)
        if len(seen) == 8:  # in the middle of the second epoch
            clock.append(float("inf"))
        return loss_of(linear, index)

    clock = [0.0]

    class Late(float):
        def __gt__(self, _: object) -> bool:
            return clock[-1] == 0.0

        def __le__(self, _: object) -> bool:
            return clock[-1] != 0.0

    standing = run(linear, replace(given(), deadline=Late()), counted)
    assert len(seen) == standing.step == 8
    assert distance(linear) > before
    assert standing.best_score == pytest.approx(distance(linear))


def test_patience_that_is_used_up_stays_used_up(tmp_path: Path) -> None:
    schedule, steps = replace(SCHEDULE, patience=2), []
    for _ in range(2):  # the second time it finds the state of the first, which ended
        linear = model()

        def counted(index: Sequence[int], linear: nn.Linear = linear) -> Tensor:
            steps.append(index)
            return loss_of(linear, index)

        calibration = given(tmp_path, validate=lambda _: 1.0)
        train(linear, counted, rows=ROWS, schedule=schedule, given=calibration, what="x")
    assert len(steps) == 2 * 5


def test_a_plateau_ends_it() -> None:
    linear = model()
    schedule = replace(SCHEDULE, patience=2)
    calibration = given(validate=lambda _: 1.0)
    standing = train(
        linear, lambda index: loss_of(linear, index), rows=ROWS, schedule=schedule, given=calibration, what="x"
    )
    assert standing.step == 2 * 5
    assert torch.equal(linear.weight, model().weight), "the first weights scored as well"


def test_a_rehearsal_changes_nothing_and_says_how_long() -> None:
    linear, said = model(), []
    calibration = replace(given(), rehearse=said.append)
    run(linear, calibration)
    assert torch.equal(linear.weight, model().weight)
    assert len(said) == 1
    assert 0 < said[0] < 60


def test_too_few_rows_and_senseless_settings() -> None:
    linear = model()
    with pytest.raises(Rejected, match="too few"):
        train(linear, lambda i: loss_of(linear, i), rows=ROWS[:9], schedule=SCHEDULE, given=given(), what="x")
    for wrong in ({"epochs": 0}, {"lr": 0}, {"batch": 0}, {"lr": 2}):
        with pytest.raises(InputError, match="to do"):
            Schedule(**wrong)  # type: ignore[arg-type]
