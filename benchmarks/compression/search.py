"""Banking77: is the pick as fast as the best of a grid that is tried out in full, and in what share of its time?

``search.py 5m`` searches for five minutes, then trains and measures every shape of the search's own menu on every
runtime configuration that this host offers (compiled torch left out), and lets the pick meet the grid's best in a duel.
Two thousand rows teach, so that the grid ends within the hour.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from banking import MODEL, require_material, save, split_rows
from common import write

import hasten
from hasten.measure.duel import speedup
from hasten.measure.worker import Worker
from hasten.pipeline.candidates import baseline_recipe, candidate_recipes
from hasten.pipeline.prepare import prepare
from hasten.pipeline.progress import Lines
from hasten.pipeline.request import Request, make_request
from hasten.pipeline.shapes import Menu
from hasten.pipeline.timing import TIMINGS
from hasten.pipeline.trials import TrialRunner
from hasten.pipeline.workspace import open_workspace
from hasten.plan.choose import gain, passes
from hasten.plan.search import slow_to_build
from hasten.records import Columns, Recipe, Trial
from hasten.runtimes import read_recipe

BUDGET, TEACHING_ROWS = "quality_drop<=1pt", 2000


def main(limit: str = "5m") -> None:
    require_material()
    with tempfile.TemporaryDirectory() as scratch:
        files = [Path(scratch) / f"{name}.csv" for name in ("calibration", "selection", "test")]
        for path, rows in zip(files, split_rows().values(), strict=True):
            save(path, rows[:TEACHING_ROWS])
        columns, splits = Columns(None, None, None), tuple(map(str, files))
        found = hasten.optimize(
            MODEL, task="text-classification", budget=BUDGET, time=limit, out=Path(scratch) / "searched",
            calibration_data=splits[0], selection_data=splits[1], test_data=splits[2], reporter=Lines(print),
        )  # fmt: skip
        pick = found.verdict.chosen
        assert pick is not None, found
        request = make_request(
            MODEL, task="text-classification", data=None, budget=BUDGET, time="10h", out=Path(scratch) / "grid",
            columns=columns, splits=splits,
        )  # fmt: skip
        write(
            "compression/search",
            "is the pick within 3 % of the best of an exhaustive grid of >= 60 recipes, in <= 20 % of its time?",
            {
                "limit": limit, "search_s": found.verdict.elapsed_s, "pick": pick.label,
                **exhausted(request, read_recipe(pick.recipe), epochs=epochs_of(found.run.trials)),
            },
        )  # fmt: skip


def epochs_of(trials: Sequence[Trial]) -> int:
    """How long the search trained its shapes: the grid must train them as long."""
    return next(int(p["epochs"]) for t in trials for p in t.recipe["passes"] if p["kind"] == "distill")


def exhausted(request: Request, pick: Recipe, *, epochs: int) -> dict[str, Any]:
    """Every recipe of the grid in full, and the duel of the pick against the fastest that passes."""
    with Worker.start(cores=request.workload.cores, threads=request.workload.threads) as builder:
        facts = builder.call("hasten.pipeline.jobs:checkpoint_facts", ref=request.model, task=request.task)
        prepared, header = prepare(request, facts), {"command": "grid", "source_hash": facts.source_hash}
        runtimes = [r.runtime for r in candidate_recipes(request) if not slow_to_build(r)]
        shapes = [(), *Menu((), facts.layers, epochs).shapes()]
        grid = [Recipe(passes=p, runtime=r) for p in shapes for r in [*runtimes, baseline_recipe().runtime]]
        with open_workspace(request, header=header) as space, TrialRunner(
            request, facts, prepared, space, builder
        ) as runner:  # fmt: skip
            runner.measure_baseline()
            started = time.perf_counter()
            trials = [tried(runner, recipe) for recipe in grid if recipe != baseline_recipe()]
            took_s = time.perf_counter() - started
            best = max((t for t in trials if passes(t, request.budget)), key=gain)
            duel = speedup(runner.duel_rounds(read_recipe(best.recipe), pick, TIMINGS["final"]), seed=0)
    return {
        "recipes": len(trials), "grid_s": took_s, "best": best.label, "pick_is_best": best.recipe_id == pick.id,
        "pick_against_best": asdict(duel),
        "trials": [told(t) for t in trials],
    }  # fmt: skip


def told(trial: Trial) -> dict[str, Any]:
    """What the file keeps of one recipe."""
    drop = trial.quality_drop_pt and asdict(trial.quality_drop_pt)
    return {"label": trial.label, "speedup": gain(trial), "drop": drop, "s": trial.elapsed_s}


def tried(runner: TrialRunner, recipe: Recipe) -> Trial:
    """One recipe in full, said aloud."""
    trial = runner.run(recipe, "screen")
    print(f"{trial.label}: {gain(trial):.2f}x, {trial.quality_drop_pt}, {trial.reason}", flush=True)
    return trial


if __name__ == "__main__":
    main(*sys.argv[1:2])
