"""What is shown: the right rows, in the right order, in honest units."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.records import Check, Constraint, Interval, Latency, Trial, Verdict
from hasten.report import plots, view
from hasten.report import quantities as q
from hasten.report import steps as stepwise
from hasten.report.html import render_html, strip


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (q.ms(2.2149), "2.21 ms"),
        (q.ms(0.01234), "0.0123 ms"),
        (q.ms(None), "–"),
        (q.ms(float("inf")), "not finite ms"),
        (q.size(91_000_000), "91.0 MB"),
        (q.size(1_500_000_000), "1.50 GB"),
        (q.size(12), "12 B"),
        (q.points(-0.001), "0.00 pt"),
        (q.points_interval(Interval(0.2, -0.3, 0.7)), "0.20 pt (-0.30 to 0.70)"),
        (q.times_interval(Interval(5.12, 4.81, 5.39)), "5.12x (4.81 to 5.39)"),
        (q.duration(412.7), "6 min 53 s"),
        (q.duration(59.7), "1 min 00 s"),
        (q.duration(7260), "2 h 01 min"),
        (q.in_unit("bytes", 23e6), "23.0 MB"),
        (q.in_unit("energy_j", 0.5), "0.500 J"),
        (q.in_unit("speedup", 5.1), "5.10x"),
        (q.in_unit("p95_ms", 3.54), "3.54 ms"),
    ],
)
def test_quantities_read_well(got: str, expected: str) -> None:
    assert got == expected


def test_checks_are_said_in_words() -> None:
    bound = Constraint("quality_drop", "<=", 1.0, "quality_drop<=1%")
    assert q.check_words(Check(bound, 1.4, False, False)) == "measured 1.40 pt: missed by 0.40 pt"
    assert q.check_words(Check(bound, 0.9, True, False)).endswith("met, but not over its whole interval")
    assert q.check_words(Check(bound, None, False, None)) == "not measured: not met"


def test_the_headline_splits_at_the_shouted_words(verdict: Verdict) -> None:
    assert view.headline(verdict).head == "Meets the budget"
    assert view.headline(verdict).rest.startswith("5.1x faster")
    plainly = replace(verdict, outcome="baseline_best", sentence="Nothing helps: keep torch")
    assert view.headline(plainly) == view.Headline("Nothing beats your baseline", "Nothing helps: keep torch")


def test_reached_shows_each_candidate_once_at_its_furthest_stage(trials: list[Trial]) -> None:
    again = replace(trials[-1], stage="screen", elapsed_s=2.0)
    shown = view.reached([*trials, again])
    assert len({t.recipe_id for t in shown}) == len(shown) == 7
    assert all(t.status == "ok" and t.stage != "preflight" for t in shown)
    assert next(t for t in shown if t.recipe_id == again.recipe_id).stage == "contest"
    p50 = [t.figures.latency_ms.p50 for t in shown if t.figures.latency_ms]
    assert p50 == sorted(p50)


def test_a_candidate_that_fell_later_did_not_pass(trials: list[Trial]) -> None:
    fallen = replace(trials[-1], stage="final", status="rejected", reason="slower than the baseline")
    assert fallen.recipe_id not in {t.recipe_id for t in view.reached([*trials, fallen])}
    assert view.rejected([*trials, fallen])[-1] == fallen


def test_a_shape_that_was_only_rehearsed_is_listed_with_its_reason(verdict: Verdict, trials: list[Trial]) -> None:
    shaped = {**trials[0].recipe, "passes": [{"kind": "layers", "count": 3}, {"kind": "distill"}]}
    rehearsed = replace(trials[0], recipe=shaped, recipe_id="s1", label="3 layers + distilled", stage="preflight")
    (shown,) = [t for t in view.fallen(verdict, [*trials, rehearsed]) if t not in view.rejected(trials)]
    assert (shown.recipe_id, shown.rejected_at) == ("s1", "left out")
    assert str(shown.reason).startswith("not trained: ")
    page = render_html(verdict, [*trials, rehearsed], command="hasten optimize")
    assert "3 layers + distilled" in page
    assert "not trained: " in page
    assert view.fallen(verdict, [*trials, rehearsed, replace(rehearsed, stage="screen")]) == view.rejected(trials)


def test_steps_lead_from_the_baseline_to_the_chosen(verdict: Verdict, trials: list[Trial]) -> None:
    steps = stepwise.steps(verdict, trials)
    assert [s.name for s in steps] == ["as it is", "torch, tuned", "onnxruntime, fp32", "chosen"]
    assert [s.speedup for s in steps] == pytest.approx([1.0, 11.32 / 6.41, 11.32 / 5.02, 5.12])
    assert steps[2].spent_s == pytest.approx(1.5 + 17.0), "its preflight counts too"
    assert [s.name for s in stepwise.steps(verdict, [])] == ["as it is", "torch, tuned", "chosen"]


def test_a_torch_choice_has_no_runtime_step(verdict: Verdict, trials: list[Trial]) -> None:
    tuned_wins = replace(verdict, chosen=verdict.tuned_baseline)
    assert [s.name for s in stepwise.steps(tuned_wins, trials)] == ["as it is", "torch, tuned"]
    assert [name for name, _ in view.sides(tuned_wins)] == ["baseline", "chosen"]


def test_forecasts_pair_a_prediction_with_what_was_measured_in_full(trials: list[Trial]) -> None:
    forecasts = view.forecasts(trials)
    assert len(forecasts) == 7
    assert all(f.measured.latency_ms is not None for f in forecasts)


def test_the_front_leaves_out_what_is_dominated(verdict: Verdict, trials: list[Trial]) -> None:
    front = plots.pareto(verdict, trials)["data"][0]
    assert front["x"] == [2.21, 4.51, 4.83]
    assert front["y"] == pytest.approx([0.2, 0.1, 0.0])


def test_rejected_candidates_are_drawn_apart_and_the_rest_counted(verdict: Verdict, trials: list[Trial]) -> None:
    traces = {t["name"]: t for t in plots.pareto(verdict, trials)["data"] if "name" in t}
    assert traces["rejected"]["marker"]["symbol"] == "x-thin"
    assert traces["rejected"]["y"] == [6.4]
    assert plots.unplotted(verdict, trials) == 3


def test_plotly_accepts_the_figures(verdict: Verdict, trials: list[Trial]) -> None:
    import plotly.graph_objects as go

    for figure in (
        plots.pareto(verdict, trials),
        plots.latency(verdict, {"baseline": [1.0, 2.0, 3.0]}),
        plots.latency(verdict, {}),
    ):
        assert len(go.Figure(figure).data) == len(figure["data"])


def test_many_samples_are_thinned_but_keep_their_ends(verdict: Verdict) -> None:
    times = [float(i) for i in range(1, 100_001)]
    curve = plots.latency(verdict, {"baseline": times})["data"][0]
    assert len(curve["x"]) <= 400
    assert (curve["x"][0], curve["x"][-1], curve["y"][-1]) == (1.0, 100_000.0, 100.0)


finite = st.floats(-1e6, 1e6)


@given(finite, finite, finite, finite, st.none() | finite)
def test_an_interval_strip_stays_on_its_line(
    low: float, middle: float, high: float, neutral: float, bound: float | None
) -> None:
    low, middle, high = sorted((low, middle, high))
    at = strip(Interval(middle, low, high), neutral=neutral, bound=bound)
    places = [v for k, v in at.items() if k != "width" and v is not None]
    assert all(0 <= v <= 100 for v in places)
    assert (at["bound"] is None) == (bound is None)


def test_each_pass_of_the_chosen_is_a_step_that_says_what_it_bought(verdict: Verdict, trials: list[Trial]) -> None:
    assert verdict.chosen is not None
    passes = [{"kind": "layers", "count": 3}, {"kind": "distill", "epochs": 2}]
    chosen = replace(verdict.chosen, recipe={**verdict.chosen.recipe, "passes": passes})
    plain = {"kind": "torch", "precision": "fp32"}

    def prefix(count: int, label: str, drop: float) -> Trial:
        made = next(t for t in trials if t.stage == "screen" and t.status == "ok")
        recipe = {"passes": passes[:count], "runtime": plain}
        lost = Interval(drop, drop - 1, drop + 1)
        return replace(made, recipe=recipe, recipe_id=label, label=label, quality_drop_pt=lost, elapsed_s=60.0)

    rows = [*trials, prefix(1, "3 layers + torch", 30.0), prefix(2, "3 layers + distilled + torch", 0.5)]
    steps = stepwise.steps(replace(verdict, chosen=chosen), rows)
    assert [s.name for s in steps][2:4] == ["+ 3 layers", "+ distilled"]
    said = stepwise.bought(steps)
    assert any(s.startswith("+ 3 layers: cost 29.9 pt") for s in said)
    assert any(s.startswith("+ distilled: bought 29.5 pt") for s in said)


def test_the_first_and_the_further_tokens_are_shown_where_text_is_written(verdict: Verdict) -> None:
    assert not any("token" in line.name for line in view.comparison(verdict) if line.name != "p50 with tokenizer")
    times = {"ttft_ms": Latency(40, 45, 50, 60, 9), "tpot_ms": Latency(10, 11, 12, 13, 9), "tokens_per_s": 80.0}
    written = replace(verdict.baseline, figures=replace(verdict.baseline.figures, **times))
    found = {line.name: line.cells[0] for line in view.comparison(replace(verdict, baseline=written))}
    assert found["first token p50"] == "40.0 ms"
    assert found["per further token p95"] == "12.0 ms"
    assert found["tokens written"] == "80.0 /s"
    assert any("whole answer" in line for line in view.method(replace(verdict, baseline=written), None))
