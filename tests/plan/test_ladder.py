"""The ladder of smaller shapes: bisected, with few trainings, and never past a pass that is faster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from hypothesis import given
from hypothesis import strategies as st
from made_trials import MadeOnnx, MadeTorch, recipe, trial

from hasten.plan.budget import parse_budget
from hasten.plan.ladder import MOST_KEPT, WORTH, left_out, next_rung, open_rungs, worth_keeping
from hasten.plan.search import NO_TIME, Clock, Finish, Run, Skip, next_action
from hasten.records import Recipe, Trial

BUDGET = parse_budget("quality_drop<=1")
PLAIN = recipe(MadeOnnx())


@dataclass(frozen=True, slots=True)
class MadeShape:
    kind: ClassVar[str] = "shape"
    size: float

    @property
    def label(self) -> str:
        return f"{self.size:g}"


def rungs_of(sizes: Sequence[float]) -> list[Recipe]:
    return [Recipe(passes=(MadeShape(size),), runtime=MadeOnnx()) for size in sizes]


def rehearsals(rungs: Sequence[Recipe], sizes: Sequence[float]) -> list[Trial]:
    return [trial(r, stage="preflight", predicted_ms=size, p50=size) for r, size in zip(rungs, sizes, strict=True)]


def drop_at(size: float, needed: float) -> float:
    """No loss down to the size that the task needs, then more and more."""
    return 0.0 if size >= needed else 2.0 + 10 * (needed - size)


def climb(sizes: Sequence[float], needed: float, *, plain_ms: float = 10.0) -> tuple[list[Trial], int]:
    rungs = rungs_of(sizes)
    rows = [trial(PLAIN, stage=s, speedup=1.0, p50=plain_ms) for s in ("preflight", "screen")]
    rows += rehearsals(rungs, sizes)
    trained = 0
    while (chosen := next_rung(rows, rungs, budget=BUDGET)) is not None:
        place = [r.id for r in rungs].index(chosen.recipe_id)
        size = sizes[place]
        rows.append(trial(rungs[place], speedup=10.0 / size, drop=drop_at(size, needed), p50=size))
        trained += 1
        assert trained <= len(sizes)
    return rows, trained


SIZES = st.lists(st.floats(0.1, 12), min_size=1, max_size=14, unique=True)


@given(SIZES, st.floats(0, 13))
def test_the_fastest_shape_that_passes_is_found(sizes: list[float], needed: float) -> None:
    rows, _ = climb(sizes, needed)
    good = [s for s in sizes if s >= needed and s * WORTH <= 10.0]
    found = [t.figures.latency_ms.p50 for t in rows if t.stage == "screen" and t.figures.latency_ms]
    passing = [ms for ms in found if ms >= needed or ms == 10.0]
    # Rungs that are less than WORTH apart count as one.
    assert min(passing) <= min(good, default=10.0) * WORTH


@given(st.floats(0, 13))
def test_a_long_ladder_takes_few_trainings(needed: float) -> None:
    sizes = [0.5 + 0.6 * n for n in range(15)]
    assert climb(sizes, needed)[1] <= 5


def test_what_is_slower_than_a_pass_is_not_trained() -> None:
    rungs = rungs_of((8.0, 4.0, 2.0))
    rows = [trial(PLAIN, speedup=3.0, p50=3.0), *rehearsals(rungs, (8.0, 4.0, 2.0))]
    assert [t.recipe_id for t in open_rungs(rows, rungs, budget=BUDGET)] == [rungs[2].id]


def test_a_near_miss_does_not_rule_out_the_next_smaller() -> None:
    rungs = rungs_of((4.0, 3.8, 1.0))
    rows = [trial(PLAIN, speedup=1.0, p50=10.0), *rehearsals(rungs, (4.0, 3.8, 1.0))]
    near = [*rows, trial(rungs[0], speedup=2.5, drop=1.8, width=0.3, p50=4.0)]
    far = [*rows, trial(rungs[0], speedup=2.5, drop=9.0, width=0.3, p50=4.0)]
    assert [t.recipe_id for t in open_rungs(near, rungs, budget=BUDGET)] == [rungs[1].id]
    assert open_rungs(far, rungs, budget=BUDGET) == []


def test_shapes_come_after_all_plain_recipes_and_before_the_contest() -> None:
    rungs = rungs_of((2.0,))
    clock = Clock(elapsed_s=0.0, limit_s=1000.0, final_s=10.0)
    rows = [trial(PLAIN, stage="preflight", predicted_ms=5.0)]
    assert next_action(rows, [PLAIN, *rungs], clock, budget=BUDGET) == Run(PLAIN.id, "screen")
    rows.append(trial(PLAIN, p50=5.0))
    assert next_action(rows, [PLAIN, *rungs], clock, budget=BUDGET) == Run(rungs[0].id, "preflight")
    rows += rehearsals(rungs, (2.0,))
    assert next_action(rows, [PLAIN, *rungs], clock, budget=BUDGET) == Run(rungs[0].id, "screen")
    rows.append(trial(rungs[0], speedup=5.0, p50=2.0))
    assert next_action(rows, [PLAIN, *rungs], clock, budget=BUDGET) == Run(rungs[0].id, "contest")


def test_a_training_that_does_not_fit_is_said_to_be_left_out() -> None:
    rungs = rungs_of((2.0,))
    rows = [trial(PLAIN, stage=s, p50=5.0, predicted_ms=5.0) for s in ("preflight", "screen", "contest")]
    rows += rehearsals(rungs, (2.0,))
    action = next_action(rows, [PLAIN, *rungs], Clock(90.0, 110.0, 10.0), budget=BUDGET)
    assert isinstance(action, Skip)
    assert action.rejected_at == NO_TIME
    rows.append(trial(rungs[0], rejected_at=NO_TIME))
    assert isinstance(next_action(rows, [PLAIN, *rungs], Clock(90.0, 110.0, 10.0), budget=BUDGET), Finish)


def test_a_shape_that_is_too_slow_says_nothing_against_smaller_ones() -> None:
    budget = parse_budget("quality_drop<=1, p50_ms<=3")
    sizes = [4.0, 2.5, 2.0]
    rungs = rungs_of(sizes)
    rows = [*rehearsals(rungs, sizes), trial(rungs[0], speedup=2.5, drop=0.0, p50=4.0)]
    assert [t.recipe_id for t in open_rungs(rows, rungs, budget=budget)] == [rungs[1].id, rungs[2].id]


def test_what_its_rehearsal_already_breaks_is_not_trained() -> None:
    budget = parse_budget("quality_drop<=1, p50_ms<=3")
    sizes = [4.0, 3.2, 2.0]
    rungs = rungs_of(sizes)
    rows = [trial(r, stage="preflight", predicted_ms=s, p50=s) for r, s in zip(rungs, sizes, strict=True)]
    # 3.2 is within what a short look may be off by.
    assert [t.recipe_id for t in open_rungs(rows, rungs, budget=budget)] == [rungs[1].id, rungs[2].id]


def test_what_misses_by_a_hair_is_trained_on_before_another_is_begun() -> None:
    first, other = rungs_of((4.0, 3.5))
    longer = Recipe(passes=(*first.passes, MadeShape(0.0)), runtime=MadeOnnx())
    rungs = [first, other, longer]
    rows = [trial(PLAIN, speedup=1.0, p50=10.0), *rehearsals(rungs, (4.0, 3.5, 4.0))]
    hair = [*rows, trial(first, speedup=2.5, drop=1.2, width=0.5, p50=4.0)]
    chosen = next_rung(hair, rungs, budget=BUDGET)
    assert chosen is not None
    assert chosen.recipe_id == longer.id
    passed = [*hair, trial(longer, speedup=2.5, drop=0.9, width=0.5, p50=4.0)]
    assert [t.recipe_id for t in open_rungs(passed, rungs, budget=BUDGET)] == [other.id]
    clear = [*rows, trial(first, speedup=2.5, drop=1.9, width=0.5, p50=4.0)]
    assert {t.recipe_id for t in open_rungs(clear, rungs, budget=BUDGET)} == {other.id, longer.id}


def test_an_estimate_that_misses_closes_no_slower_shape() -> None:
    rungs = rungs_of((4.0, 5.0))
    rows = [trial(PLAIN, speedup=1.0, p50=10.0), *rehearsals(rungs, (4.0, 5.0))]
    rows.append(trial(rungs[0], speedup=2.5, drop=1.2, width=0.5, p50=4.0))
    assert [t.recipe_id for t in open_rungs(rows, rungs, budget=BUDGET)] == [rungs[1].id]


@dataclass(frozen=True, slots=True)
class MadeControl:
    kind: ClassVar[str] = "control"
    size: float
    label: ClassVar[str] = "control"


def test_a_control_that_fails_rules_out_itself_alone() -> None:
    control = Recipe(passes=(MadeControl(4.0),), runtime=MadeOnnx())
    shape, both = rungs_of([2.0])[0], Recipe(passes=(MadeControl(4.0), MadeShape(2.0)), runtime=MadeOnnx())
    rows = [trial(r, stage="preflight", predicted_ms=ms) for r, ms in ((control, 4.0), (shape, 2.0), (both, 1.9))]
    rows.append(trial(control, speedup=2.0, drop=20.0, p50=4.0))
    assert [t.recipe_id for t in open_rungs(rows, [control, shape, both], budget=BUDGET)] == [shape.id]


@dataclass(frozen=True, slots=True)
class MadeLesson:
    kind: ClassVar[str] = "distill"
    label: ClassVar[str] = "taught"


@dataclass(frozen=True, slots=True)
class MadeGrid:
    kind: ClassVar[str] = "qat"
    label: ClassVar[str] = "on its grid"


def test_a_shape_that_lost_says_nothing_of_one_on_another_runtime_or_better_taught() -> None:
    shape = MadeShape(4.0)
    lost = Recipe(passes=(shape, MadeLesson()), runtime=MadeOnnx())
    rungs = [
        lost,
        Recipe(passes=(shape, MadeLesson()), runtime=MadeTorch()),
        Recipe(passes=(shape, MadeLesson(), MadeGrid()), runtime=MadeOnnx()),
        Recipe(passes=(shape,), runtime=MadeOnnx()),
    ]
    rows = [*rehearsals(rungs, (4.0, 3.0, 3.5, 3.8)), trial(lost, speedup=2.5, drop=9.0, p50=4.0)]
    assert {t.recipe_id for t in open_rungs(rows, rungs, budget=BUDGET)} == {rungs[1].id, rungs[2].id}


def test_every_shape_that_was_only_rehearsed_has_a_reason() -> None:
    budget = parse_budget("quality_drop<=1, p50_ms<=6")
    sizes = (9.0, 5.5, 4.0, 2.0, 3.0)
    rungs = [Recipe(passes=(MadeShape(size), MadeLesson()), runtime=MadeOnnx()) for size in sizes]
    rows = [trial(PLAIN, speedup=2.0, p50=5.0), *rehearsals(rungs, sizes)]
    rows += [trial(rungs[3], speedup=5.0, drop=9.0, p50=2.0), trial(rungs[4], rejected_at=NO_TIME)]
    smaller = Recipe(passes=(MadeShape(1.0), MadeLesson()), runtime=MadeOnnx())
    plain = Recipe(passes=(MadeShape(3.9),), runtime=MadeOnnx())
    rows += rehearsals([smaller, plain], (1.0, 3.9))
    found = {t.recipe_id: reason for t, reason in left_out(rows, budget=budget)}
    assert set(found) == {rungs[0].id, rungs[1].id, rungs[2].id, smaller.id, plain.id}
    assert found[rungs[0].id] == "not trained: its rehearsal breaks a bound clearly"
    assert found[rungs[1].id] == (
        f"not trained: at about 5.50 ms it is hardly faster than {PLAIN.label} (5.00 ms), which passes"
    )
    assert found[rungs[2].id] == "not trained: the search ended before its turn; it needs about 1 s"
    assert found[smaller.id] == f"not trained: {rungs[3].label} is slower, and lost too much quality already"
    assert found[plain.id].startswith("not measured in full: the search ended")
    shown = {t.recipe_id for t in open_rungs(rows, [*rungs, smaller, plain], budget=budget)}
    assert {i for i, reason in found.items() if "before its turn" in reason} == shown


def test_weights_that_a_run_may_go_on_from_are_kept() -> None:
    shapes = [Recipe(passes=(MadeShape(n), MadeLesson()), runtime=MadeOnnx()) for n in range(12)]
    untaught = Recipe(passes=(MadeShape(0.5),), runtime=MadeOnnx())
    rows = [
        trial(shapes[0], speedup=3.0, drop=9.0, width=0.3), trial(shapes[1], speedup=5.0, drop=1.8, width=0.3),
        trial(shapes[2], speedup=2.0, drop=0.1), trial(shapes[3], speedup=2.5, drop=0.1),
        trial(shapes[4], rejected_at="training"), trial(untaught, speedup=4.0), trial(PLAIN),
    ]  # fmt: skip
    assert [t.recipe_id for t in worth_keeping(rows, BUDGET)] == [shapes[3].id, shapes[2].id, shapes[1].id]
    rows += [trial(shape, speedup=2.0) for shape in shapes[5:]]
    assert len(worth_keeping(rows, BUDGET)) == MOST_KEPT
