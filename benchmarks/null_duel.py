"""A model against itself, 40 times: how often is a speed-up claimed? (At most 5 % may.)"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path

from common import write

import hasten
from hasten.measure.duel import claims_slowdown, claims_speedup
from hasten.pipeline.demo import demo_material
from hasten.records import InputError

RUNS = 40


def main() -> None:
    model, rows = demo_material()
    with tempfile.TemporaryDirectory() as scratch:
        made = hasten.optimize(
            model, task="text-classification", data=rows, budget="", time="90s", out=Path(scratch) / "out",
            runtimes=("onnxruntime",), techniques=("int8-dynamic",), max_rows=200,
        )  # fmt: skip
        if made.bundle is None:
            raise InputError(repr(made), expected="a bundle to duel with", remedy="see its report")
        intervals = []
        for run in range(RUNS):
            result = hasten.bench(made.bundle, data=rows, rounds=2, requests=160, seed=run)
            intervals.append(result.speedup)
            print(f"{run + 1}/{RUNS}: {result.claim}", flush=True)
    faster, slower = sum(map(claims_speedup, intervals)), sum(map(claims_slowdown, intervals))
    write(
        "null_duel",
        "a model against itself: a speed-up is claimed in at most 5 % of 40 runs",
        {"runs": RUNS, "claimed_faster": faster, "claimed_slower": slower, "intervals": [asdict(i) for i in intervals]},
    )


if __name__ == "__main__":
    main()
