"""The verbs that search: optimize and demo."""

from __future__ import annotations

from typing import Any

import click

from hasten.cli.options import DATA, HARDWARE, JSON, TRUST, with_options
from hasten.cli.output import names, reporter, show_result
from hasten.tasks import TASKS


@click.command()
@click.argument("model")
@click.option("--task", required=True, help=f"One of {', '.join(TASKS)}.")
@click.option("--data", help="Rows (CSV, TSV, JSONL, Parquet, or the task's own form), or a dataset id; split for you.")
@click.option("--calibration-data", help="Your own split, with the next two, instead of --data.")
@click.option("--selection-data", help="Rows that candidates are compared on.")
@click.option("--test-data", help="Rows that only the final verdict sees.")
@click.option("--extra-data", help="Texts without labels that a smaller shape may learn from, too.")
@click.option(
    "--budget",
    default="",
    help='Bounds, such as "quality_drop<=1%, p95_ms<=20, size<=50MB"; of text: ttft_ms, tpot_ms.',
)
@click.option("--time", default="10m", show_default=True, help="How long to search; always ends with a verdict.")
@click.option("--out", default="out", show_default=True, help="Folder for bundle, report, trials and verdict.")
@click.option("--runtimes", help="Only these, comma-separated: torch, onnxruntime, openvino, native, executorch.")
@click.option("--techniques", help="Only these, comma-separated, such as int8-dynamic or layers,distill.")
@click.option("--recipe", help="A JSON file with one recipe: build and measure it, and search for nothing.")
@click.option("--batch", type=int, default=1, show_default=True, help="Rows in a request.")
@click.option("--concurrency", type=int, default=1, show_default=True, help="Requests in flight, for throughput.")
@click.option("--max-length", type=int, help="Cut texts at this many tokens [default: 512 or the model's limit].")
@click.option("--new-tokens", type=int, help="Tokens of an answer [default: as the references are, else 64].")
@click.option("--prompt-tokens", type=int, help="Tokens of a timed prompt [default: as the rows are].")
@click.option("--chat", is_flag=True, help="Put prompts through the tokenizer's chat template.")
@click.option("--prefix", default="", help='Put this in front of every text, such as "summarize: " for T5.')
@click.option("--max-rows", type=int, help="Use at most this many rows each for selection and final test.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of splits and samples.")
@click.option("--keep-work", is_flag=True, help="Keep every candidate's files in OUT/work.")
@click.option("--overwrite", is_flag=True, help="Discard an earlier, different run in OUT.")
@with_options(DATA, HARDWARE, TRUST, JSON)
def optimize(as_json: bool, **options: Any) -> None:
    """Find the fastest version of MODEL (a folder or hub id) that meets the budget."""
    from hasten.pipeline import optimize as run

    for name in ("runtimes", "techniques"):
        options[name] = names(options[name])
    with reporter() as say:
        result = run(options.pop("model"), reporter=say, **options)
    show_result(result, as_json=as_json)


@click.command()
@click.option("--time", default="4m", show_default=True, help="How long to search.")
@click.option("--out", default="demo-out", show_default=True, help="Folder for the results.")
@click.option("--budget", default="quality_drop<=1%", show_default=True, help="The demo's budget.")
@click.option("--data", help="Ratings file to use instead of the packaged reviews (id, rating, text; no header).")
@with_options(HARDWARE, JSON)
def demo(as_json: bool, **options: Any) -> None:
    """The main job on the embedded default: a movie-review classifier made faster and verified."""
    from hasten.pipeline.demo import run_demo

    with reporter() as say:
        result = run_demo(reporter=say, **options)
    show_result(result, as_json=as_json)
