"""The verbs for what a search left, and for this machine: run, check, report, doctor."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from hasten.cli.options import DATA, HARDWARE, JSON, with_options
from hasten.cli.output import emit, emit_lines, reporter, show_result, stdout


@click.command()
@JSON
def doctor(as_json: bool) -> None:
    """What this machine offers: cores, instruction sets, memory, GPUs, and every runtime."""
    from hasten.pipeline.doctor import examine, show

    findings = examine()
    emit(findings) if as_json else show(findings, console=stdout())


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--data", required=True, help="Rows to predict; labels are not needed.")
@click.option("--out", type=click.Path(path_type=Path), help="Write JSONL here instead of stdout.")
@click.option("--batch", type=int, help="Rows at a time [default: as the bundle was measured].")
@with_options(DATA, HARDWARE, JSON)
def run(as_json: bool, **options: Any) -> None:
    """Predict rows with BUNDLE: one JSON record per row, in input order."""
    from hasten.pipeline.predict import predict_file

    emit_lines(predict_file(**options), out=options["out"], as_json=as_json)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--data", help="Labelled rows: also check quality and speed against the manifest.")
@click.option("--quality-tolerance", default=1.0, show_default=True, help="Points of the metric that may be lost.")
@click.option(
    "--speed-tolerance", default=0.25, show_default=True, help="Share by which p50 may exceed the manifest's."
)
@with_options(DATA, HARDWARE, JSON)
def check(as_json: bool, **options: Any) -> None:
    """Verify BUNDLE: hashes, host, golden outputs; with --data also quality and speed. Exit 1 on regression."""
    from hasten.pipeline.check import check as verify
    from hasten.pipeline.check import show

    with reporter() as say:
        result = verify(options.pop("bundle"), reporter=say, **options)
    emit(result.to_dict()) if as_json else show(result, console=stdout())
    sys.exit(0 if result.passed else 1)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@JSON
def report(folder: Path, as_json: bool) -> None:
    """Show the run in FOLDER again, and rewrite its report.html."""
    from hasten.pipeline.result import open_result

    result = open_result(folder, rewrite=True)
    show_result(result, as_json=as_json)
