"""The verb that decides before anything is built: size."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from hasten.cli.options import JSON
from hasten.cli.output import emit, reporter, stdout


@click.command()
@click.option("--task", help="chat, summarization, text-classification, ... (or in --spec).")
@click.option("--spec", type=click.Path(path_type=Path), help="TOML file with these options' names as keys.")
@click.option("--requests-per-s", type=float, help="Load at its usual peak [default: 1].")
@click.option("--input-tokens", type=float, help="Of a request, mean [default: 512].")
@click.option("--output-tokens", type=float, help="Of an answer, mean [default: 128].")
@click.option(
    "--slo",
    help='Hard bounds, such as "ttft_ms<=500, tpot_ms<=40": ttft_ms, tpot_ms, '
    "latency_ms, usd_per_month, usd_per_request, usd_per_mtok, energy_j, co2_kg_per_month, memory_bytes, machines.",
)
@click.option("--prefer", help="Soft bounds of the same form, or on scores: what holds them comes first.")
@click.option("--quality", help='Scores that are needed, such as "mmlu>=60".')
@click.option("--hardware", help="Names, comma-separated: h200,l4,cpu-vnni-16,phone [default: all].")
@click.option("--models", help="Names, hub ids or folders, comma-separated [default: all of the task's kind].")
@click.option("--params", help="Sizes instead of models, such as 7B,350M.")
@click.option("--tokens-trained", help="Training tokens, such as 15T, for laws where none are published.")
@click.option("--precisions", help="Of fp32,bf16,fp8,int8,int4, comma-separated.")
@click.option("--setting", type=click.Choice(["cloud", "enterprise", "edge"]), help="What orders the answers.")
@click.option("--privacy/--no-privacy", default=None, help="The data may not leave.")
@click.option("--offline/--online", default=None, help="There is no network.")
@click.option("--percentile", type=float, help="Share of requests that latency bounds are for [default: 95].")
@click.option("--mean-share", type=float, help="Mean load as a share of --requests-per-s [default: 1].")
@click.option("--headroom", type=float, help="Share of the capacity to keep free [default: 0.3].")
@click.option("--length-scv", type=float, help="Squared variation of the lengths, 0: all alike [default: 0.5].")
@click.option("--cache-bits", type=int, help="Bits of keys and values [default: 16].")
@click.option("--draft", help="Model that drafts tokens (speculation); with --drafted and --acceptance.")
@click.option("--drafted", type=int, help="Tokens drafted at a time [default: 4].")
@click.option("--acceptance", type=float, help="Chance that a drafted token is right [default: 0.7].")
@click.option("--network-ms", type=float, help="Round trip to a cloud [default: 25].")
@click.option("--api", help="APIs to compare with, comma-separated, such as gpt-4o-mini.")
@click.option("--this-host", is_flag=True, help="Time this machine (two minutes, once) and add it to the hardware.")
@click.option("--again", is_flag=True, help="With --this-host: time it even where it was timed before.")
@click.option("--trials", multiple=True, help="Your own measurements: folders of runs, or their trials.jsonl.")
@click.option("--hardware-file", type=click.Path(path_type=Path), help="Your own hardware and prices (TOML).")
@click.option("--models-file", type=click.Path(path_type=Path), help="Your own models (TOML).")
@click.option("--prices-file", type=click.Path(path_type=Path), help="Your own API prices (TOML).")
@click.option("--out", type=click.Path(path_type=Path), help="Write the answer as an HTML page, too.")
@JSON
def size(as_json: bool, out: Path | None, **options: Any) -> None:
    """What to deploy, where, at what cost: models, precisions, hardware and replicas that hold your bounds."""
    from hasten.pipeline.size import size as decide
    from hasten.records import InputError
    from hasten.report.size_terminal import show_sizing

    if out is not None and (str(out) in ("", ".") or out.is_dir()):
        raise InputError(f"--out {out} is a folder", expected="a file for the page", remedy="give it a name")
    options["trials"] = options["trials"] or None
    with reporter() as say:
        found = decide(reporter=say, **options)
    if out is not None:
        from hasten.report.size_page import write_sizing

        write_sizing(out, found)
    emit(found.to_dict()) if as_json else show_sizing(found, console=stdout())
    sys.exit(0 if found.recommendation.best else 1)
