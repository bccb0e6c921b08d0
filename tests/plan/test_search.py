"""The search, played against made-up candidates: it ends, repeats nothing, resumes alike, leaves the final its time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_trials import MadeOnnx, MadeOpenVino, MadeTorch, recipe, trial

from hasten.plan.budget import parse_budget
from hasten.plan.search import (
    CONTESTANTS,
    NO_TIME,
    PREFLIGHT_SHARE,
    Action,
    Clock,
    Finish,
    Run,
    Skip,
    contestants,
    next_action,
    only,
    without_old_skips,
)
from hasten.records import Recipe, Stage, Trial

BUDGET = parse_budget("quality_drop<=1")
BASELINE = recipe(MadeTorch(attention="baseline"))


@dataclass(frozen=True)
class Truth:
    """What measuring a candidate would show, and what it would take."""

    ms: float = 5.0
    drop: float = 0.0
    rejected_at: Stage | None = None
    took_s: Mapping[Stage, float] | None = None

    def measure(self, of: Recipe, stage: Stage) -> Trial:
        elapsed_s = (self.took_s or {}).get(stage, 1.0)
        if stage == self.rejected_at:
            return trial(of, stage=stage, rejected_at="export", elapsed_s=elapsed_s)
        ms = self.ms / 3 if stage == "preflight" else self.ms
        predicted = self.ms if stage == "preflight" else None
        return trial(
            of, stage=stage, speedup=10.0 / self.ms, drop=self.drop, predicted_ms=predicted, elapsed_s=elapsed_s, p50=ms
        )


def row_of(action: Run | Skip, recipes: Sequence[Recipe], truths: Sequence[Truth]) -> Trial:
    place = [r.id for r in recipes].index(action.recipe_id)
    if isinstance(action, Skip):
        made = trial(recipes[place], stage=action.stage, rejected_at=action.rejected_at, elapsed_s=0.0)
        return replace(made, reason=action.reason)
    return truths[place].measure(recipes[place], action.stage)


def play(
    recipes: Sequence[Recipe],
    truths: Sequence[Truth],
    *,
    limit_s: float = 1e6,
    final_s: float = 10.0,
    trials: Sequence[Trial] = (),
) -> tuple[list[Action], list[Trial], float]:
    """Actions, trials and seconds spent until the search finishes."""
    rows, actions = list(trials), []
    spent = sum(t.elapsed_s for t in rows)
    for _ in range(3 * len(recipes) + 1):
        action = next_action(rows, recipes, Clock(spent, limit_s, final_s), budget=BUDGET)
        actions.append(action)
        if isinstance(action, Finish):
            return actions, rows, spent
        rows.append(row_of(action, recipes, truths))
        spent += rows[-1].elapsed_s
    raise AssertionError("the search does not end")


def ran(rows: Sequence[Trial], stage: Stage) -> list[str]:
    return [t.recipe_id for t in rows if t.stage == stage and t.rejected_at not in (NO_TIME, "pruned")]


def onnx(count: int) -> list[Recipe]:
    return [recipe(MadeOnnx(seed=n)) for n in range(count)]


@st.composite
def games(draw: st.DrawFn) -> tuple[list[Recipe], list[Truth]]:
    kinds = [
        lambda n: MadeTorch(seed=n),
        lambda n: MadeTorch(seed=n, compile=True),
        lambda n: MadeOnnx(seed=n),
        lambda n: MadeOpenVino(seed=n),
    ]
    picked = draw(st.lists(st.sampled_from(kinds), max_size=8))
    made = [recipe(kind(n)) for n, kind in enumerate(picked)]
    truth = st.builds(
        Truth,
        ms=st.floats(0.5, 50),
        drop=st.floats(-1, 4),
        rejected_at=st.sampled_from([None, None, None, "preflight", "screen", "contest"]),
        took_s=st.fixed_dictionaries(
            {"preflight": st.floats(0.1, 20), "screen": st.floats(0.1, 40), "contest": st.floats(0.1, 40)}
        ),
    )
    return made, [draw(truth) for _ in made]


LIMITS = st.sampled_from([0.0, 5.0, 30.0, 60.0, 120.0, 300.0, 3600.0])


@settings(max_examples=200, deadline=None)
@given(games(), LIMITS)
def test_it_always_ends_and_never_repeats(game: tuple[list[Recipe], list[Truth]], limit_s: float) -> None:
    _, rows, _ = play(*game, limit_s=limit_s, final_s=0.2 * limit_s)
    done = [(t.recipe_id, t.stage) for t in rows]
    assert len(done) == len(set(done))
    assert set(ran(rows, "screen")) <= set(ran(rows, "preflight"))
    assert set(ran(rows, "contest")) <= set(ran(rows, "screen"))
    assert {t.recipe_id for t in rows if t.stage == "preflight"} == {r.id for r in game[0]}


@settings(max_examples=100, deadline=None)
@given(games(), LIMITS, st.data())
def test_any_prefix_resumes_to_the_same_decisions(
    game: tuple[list[Recipe], list[Truth]], limit_s: float, data: st.DataObject
) -> None:
    actions, rows, _ = play(*game, limit_s=limit_s)
    cut = data.draw(st.integers(0, len(rows)))
    again, rows_again, _ = play(*game, limit_s=limit_s, trials=tuple(rows[:cut]))
    assert again == actions[cut:]
    assert rows_again == rows


@settings(max_examples=200, deadline=None)
@given(games(), LIMITS)
def test_nothing_starts_in_the_time_of_the_final(game: tuple[list[Recipe], list[Truth]], limit_s: float) -> None:
    final_s = 0.2 * limit_s
    actions, rows, _ = play(*game, limit_s=limit_s, final_s=final_s)
    spent, measured = 0.0, False
    for action, row in zip(actions, rows, strict=False):
        # Without any candidate there would be nothing to test: its screen may.
        first = isinstance(action, Run) and action.stage == "screen" and not measured and spent < limit_s
        assert not isinstance(action, Run) or spent < limit_s - final_s or first
        spent += row.elapsed_s
        measured = measured or (row.stage == "screen" and row.status == "ok")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.5, 50), min_size=1, max_size=8), st.floats(1, 30), LIMITS)
def test_stages_that_take_what_they_took_before_leave_the_final_whole(
    speeds: list[float], each_s: float, limit_s: float
) -> None:
    took: Mapping[Stage, float] = {"preflight": each_s, "screen": each_s, "contest": each_s}
    _, rows, spent = play(
        onnx(len(speeds)), [Truth(ms=ms, took_s=took) for ms in speeds], limit_s=limit_s, final_s=0.2 * limit_s
    )
    # Only the first of a stage is started on a guess.
    surprise = sum(max(0.0, each_s - guess) for guess in (10.0, 20.0, 20.0))
    assert spent <= 0.8 * limit_s + surprise + 1e-9
    assert rows


def test_with_time_the_best_is_contested() -> None:
    recipes = onnx(6)
    _, rows, _ = play(recipes, [Truth(ms=ms) for ms in (5, 4, 3, 6, 2, 7)])
    assert ran(rows, "preflight") == [r.id for r in recipes]
    assert ran(rows, "contest") == [recipes[4].id, recipes[2].id, recipes[1].id][: len(ran(rows, "contest"))]
    assert 1 <= len(ran(rows, "contest")) <= CONTESTANTS


def test_the_first_artifact_comes_before_the_last_preflight() -> None:
    _, rows, _ = play(onnx(6), [Truth()] * 6)
    stages = [t.stage for t in rows]
    assert stages.index("screen") < len(stages) - 1 - stages[::-1].index("preflight")


def test_in_a_short_time_one_candidate_comes_through_rather_than_many_halfway() -> None:
    recipes = [*onnx(3), recipe(MadeOpenVino()), recipe(MadeTorch())]
    took: Mapping[Stage, float] = {"preflight": 5.0, "screen": 8.0}
    _, rows, _ = play(recipes, [Truth(took_s=took)] * 5, limit_s=45.0, final_s=15.0)
    assert ran(rows, "screen")


def test_the_hopeless_are_pruned_with_both_figures_but_not_the_first_of_a_runtime() -> None:
    recipes = [recipe(MadeOnnx()), recipe(MadeOnnx(seed=1)), recipe(MadeOpenVino())]
    _, rows, _ = play(recipes, [Truth(ms=2.0), Truth(ms=20.0), Truth(ms=20.0)])
    (pruned,) = [t for t in rows if t.rejected_at == "pruned"]
    assert pruned.recipe_id == recipes[1].id
    assert "20.00 ms" in str(pruned.reason)
    assert "2.00 ms" in str(pruned.reason)
    assert recipes[2].id in ran(rows, "screen")


def test_short_of_time_the_best_known_is_screened_and_the_rest_is_said_to_be_skipped() -> None:
    took: Mapping[Stage, float] = {"preflight": 10.0, "screen": 12.0}
    _, rows, _ = play(onnx(10), [Truth(took_s=took)] * 10, limit_s=100.0, final_s=20.0)
    assert ran(rows, "screen")
    skipped = [t for t in rows if t.rejected_at == NO_TIME]
    assert skipped
    assert all("s were left" in str(t.reason) or "s are left" in str(t.reason) for t in skipped)


def test_preflights_do_not_eat_the_time_of_the_screens() -> None:
    took: Mapping[Stage, float] = {"preflight": 20.0, "screen": 1.0}
    _, rows, _ = play(onnx(20), [Truth(took_s=took)] * 20, limit_s=300.0, final_s=20.0)
    spent = sum(t.elapsed_s for t in rows if t.stage == "preflight")
    assert PREFLIGHT_SHARE * 300.0 < spent <= PREFLIGHT_SHARE * 300.0 + 20.0
    assert ran(rows, "screen") == ran(rows, "preflight")


def test_without_any_time_nothing_runs() -> None:
    actions, rows, _ = play(onnx(3), [Truth()] * 3, limit_s=0.0, final_s=0.0)
    assert not any(isinstance(a, Run) for a in actions)
    assert len(rows) == 3
    assert actions[-1] == Finish("the time is used up")


def test_no_recipes_is_the_end() -> None:
    assert play([], [])[0] == [Finish("every candidate was tried")]


def test_a_compiler_waits_for_everything_else() -> None:
    recipes = [recipe(MadeTorch(compile=True)), *onnx(3)]
    _, rows, _ = play(recipes, [Truth()] * 4)
    assert ran(rows, "preflight")[-1] == recipes[0].id
    assert ran(rows, "screen")[-1] == recipes[0].id


@pytest.mark.parametrize("stage", ["preflight", "screen"])
def test_the_rejected_come_no_further(stage: Stage) -> None:
    recipes = onnx(2)
    _, rows, _ = play(recipes, [Truth(rejected_at=stage), Truth()])
    assert [t.stage for t in rows if t.recipe_id == recipes[0].id][-1] == stage
    assert ran(rows, "contest") == [recipes[1].id]


def test_the_contest_holds_who_may_pass_and_the_tuned_baseline() -> None:
    recipes = [*onnx(6), recipe(MadeTorch(attention="eager"))]
    drops = (0.0, 5.0, 0.0, 1.2, 0.0, 0.0, 0.0)
    rows = [
        Truth(ms=float(n + 1), drop=drop).measure(r, "screen")
        for n, (r, drop) in enumerate(zip(recipes, drops, strict=True))
    ]
    assert contestants(rows, recipes, BUDGET) == tuple(recipes[n].id for n in (0, 2, 3, 6))


def test_when_nothing_may_pass_the_fastest_is_measured_well_all_the_same() -> None:
    recipes = onnx(3)
    _, rows, _ = play(recipes, [Truth(ms=3.0, drop=9.0), Truth(ms=2.0, drop=9.0), Truth(ms=4.0, drop=9.0)])
    assert ran(rows, "contest") == [recipes[1].id]


def test_the_baselines_own_rows_decide_nothing_about_candidates() -> None:
    recipes = onnx(2)
    base = [
        Truth(ms=10.0, took_s={"preflight": 99.0, "screen": 99.0}).measure(BASELINE, s) for s in ("preflight", "screen")
    ]
    actions, rows, _ = play(recipes, [Truth(), Truth()], limit_s=300.0, trials=base)
    assert {a.recipe_id for a in actions if not isinstance(a, Finish)} == {r.id for r in recipes}
    assert ran(rows[2:], "contest") == [r.id for r in recipes]


def test_more_time_brings_back_only_what_time_alone_had_skipped() -> None:
    recipes = onnx(4)
    _, rows, _ = play(recipes, [Truth(took_s={"preflight": 10.0, "screen": 12.0})] * 4, limit_s=50.0, final_s=10.0)
    skipped = [t.recipe_id for t in rows if t.rejected_at == NO_TIME]
    assert skipped
    kept = without_old_skips(rows, before=len(rows))
    assert kept == tuple(t for t in rows if t.rejected_at != NO_TIME)
    assert without_old_skips(rows, before=0) == tuple(rows)
    _, more, _ = play(recipes, [Truth()] * 4, trials=kept)
    assert set(ran(more, "screen")) == {r.id for r in recipes}


def test_three_that_fail_the_contest_are_replaced_by_the_next() -> None:
    recipes = onnx(4)
    rows = [trial(r, stage=s, speedup=9.0 - n) for n, r in enumerate(recipes) for s in ("preflight", "screen")]
    rows += [trial(r, stage="contest", speedup=9.0 - n, drop=3.0) for n, r in enumerate(recipes[:3])]
    assert contestants(rows, recipes, BUDGET) == (recipes[3].id,)
    clock = Clock(elapsed_s=0.0, limit_s=1000.0, final_s=10.0)
    assert next_action(rows, recipes, clock, budget=BUDGET) == Run(recipes[3].id, "contest")


def test_a_recipe_that_was_asked_for_is_measured_whatever_is_expected() -> None:
    asked, other = onnx(2)
    rows = [trial(other, stage=s, p50=1.0, speedup=10.0, predicted_ms=1.0) for s in ("preflight", "screen")]
    for stage in ("preflight", "screen"):
        assert only(rows, asked) == Run(asked.id, stage)
        rows.append(trial(asked, stage=stage, p50=50.0, speedup=0.2, predicted_ms=50.0))
    assert only(rows, asked) is None
    assert only([trial(asked, stage="preflight", rejected_at="export")], asked) is None
