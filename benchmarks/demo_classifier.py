"""MiniLM classifier of the demo, real lengths, batch 1: is the choice >= 4.5x faster than eager fp32 at <= 1 point?

Also a budget that nothing can meet, which must end in an honest verdict.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from common import verdict_facts, write

import hasten
from hasten.pipeline.demo import demo_material, run_demo
from hasten.pipeline.progress import Lines


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        say = Lines(print)
        result = run_demo(time="5m", out=Path(scratch) / "demo", reporter=say)
        latency = result.to_dict()["chosen"]["latency_ms"]
        tail = latency["p95"] / latency["p50"]
        write(
            "demo_classifier",
            ">= 4.5x faster p50 than torch eager fp32 at <= 1 point of accuracy, p95/p50 <= 2.5",
            {**verdict_facts(result), "p95_over_p50": tail},
        )
        model, rows = demo_material()
        useless = hasten.optimize(
            model, task="text-classification", data=rows, budget="p95_ms<=0.001, quality_drop<=0.1%", time="2m",
            out=Path(scratch) / "useless", max_rows=200, reporter=say,
        )  # fmt: skip
        write("useless_budget", "does an impossible budget end in an honest verdict?", verdict_facts(useless))


if __name__ == "__main__":
    main()
