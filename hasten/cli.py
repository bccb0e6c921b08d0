"""The command line: thin verbs over the Python API.

Takes arguments, prints for people on stdout (progress on stderr) or, with ``--json``,
one machine-readable object. Exit codes: 0 done (for ``check``: passed), 1 regression
or budget not met, 2 bad input, 70 a fault of hasten's own, 130 interrupted. Heavy imports stay inside the verbs,
so ``hasten --help`` answers at once.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import click

from hasten import __version__

F = TypeVar("F", bound=Callable[..., Any])
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object; progress goes to stderr.")


def _options(*options: Callable[[F], F]) -> Callable[[F], F]:
    def apply(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return apply


_DATA = _options(
    click.option("--text-column", help="Column with the text (found by name otherwise)."),
    click.option("--text-pair-column", help="Column with the second text, where there is one."),
    click.option("--label-column", help="Column with the label."),
)
_HARDWARE = _options(
    click.option("--threads", type=int, help="Threads a model may use [default: as many as cores]."),
    click.option("--cores", help="Cores to use, such as 0,1 or 0-3 [default: all this process may use]."),
)
_TRUST = _options(
    click.option("--allow-pickle", is_flag=True, help="Load pickled weights (they can run code)."),
    click.option("--trust-remote-code", is_flag=True, help="Run code that comes with the checkpoint."),
    click.option("--revision", help="Revision of a hub checkpoint."),
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="hasten")
def cli() -> None:
    """Find the fastest Transformer that provably still passes, on your hardware.

    \b
    Start here:
      hasten demo                        the main job on an embedded model, in minutes
      hasten doctor                      what this machine offers, and what is missing
      hasten optimize MODEL --task text-classification --data rows.csv
                      --budget "quality_drop<=1%, p95_ms<=20" --time 10m --out out/
    """


@cli.command()
@click.argument("model")
@click.option("--task", required=True, help="text-classification or feature-extraction.")
@click.option("--data", help="CSV, TSV, JSONL or Parquet file, or a dataset id; split for you.")
@click.option("--calibration-data", help="Your own split, with the next two, instead of --data.")
@click.option("--selection-data", help="Rows that candidates are compared on.")
@click.option("--test-data", help="Rows that only the final verdict sees.")
@click.option("--extra-data", help="Texts without labels that a smaller shape may learn from, too.")
@click.option("--budget", default="", help='Bounds, such as "quality_drop<=1%, p95_ms<=20, size<=50MB".')
@click.option("--time", default="10m", show_default=True, help="How long to search; always ends with a verdict.")
@click.option("--out", default="out", show_default=True, help="Folder for bundle, report, trials and verdict.")
@click.option("--runtimes", help="Only these, comma-separated: torch, onnxruntime, openvino.")
@click.option("--techniques", help="Only these, comma-separated, such as bf16,int8-dynamic,int8-static.")
@click.option("--batch", type=int, default=1, show_default=True, help="Rows in a request.")
@click.option("--concurrency", type=int, default=1, show_default=True, help="Requests in flight, for throughput.")
@click.option("--max-length", type=int, help="Cut texts at this many tokens [default: 512 or the model's limit].")
@click.option("--max-rows", type=int, help="Use at most this many rows each for selection and final test.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of splits and samples.")
@click.option("--keep-work", is_flag=True, help="Keep every candidate's files in OUT/work.")
@click.option("--overwrite", is_flag=True, help="Discard an earlier, different run in OUT.")
@_options(_DATA, _HARDWARE, _TRUST, _JSON)
def optimize(as_json: bool, **options: Any) -> None:
    """Find the fastest version of MODEL (a folder or hub id) that meets the budget."""
    from hasten.pipeline import optimize as run

    for name in ("runtimes", "techniques"):
        options[name] = _names(options[name])
    with _reporter() as reporter:
        result = run(options.pop("model"), reporter=reporter, **options)
    _show_result(result, as_json=as_json)


@cli.command()
@click.option("--time", default="4m", show_default=True, help="How long to search.")
@click.option("--out", default="demo-out", show_default=True, help="Folder for the results.")
@click.option("--budget", default="quality_drop<=1%", show_default=True, help="The demo's budget.")
@click.option("--data", help="Ratings file to use instead of the packaged reviews (id, rating, text; no header).")
@_options(_HARDWARE, _JSON)
def demo(as_json: bool, **options: Any) -> None:
    """The main job on the embedded default: a movie-review classifier made faster and verified."""
    from hasten.pipeline.demo import run_demo

    with _reporter() as reporter:
        result = run_demo(reporter=reporter, **options)
    _show_result(result, as_json=as_json)


@cli.command()
@_JSON
def doctor(as_json: bool) -> None:
    """What this machine offers: cores, instruction sets, memory, GPUs, and every runtime."""
    from hasten.pipeline.doctor import examine, show

    findings = examine()
    _emit(findings) if as_json else show(findings, console=_stdout())


@cli.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--data", required=True, help="Rows to predict; labels are not needed.")
@click.option("--out", type=click.Path(path_type=Path), help="Write JSONL here instead of stdout.")
@click.option("--batch", type=int, help="Rows at a time [default: as the bundle was measured].")
@_options(_DATA, _HARDWARE, _JSON)
def run(as_json: bool, **options: Any) -> None:
    """Predict rows with BUNDLE: one JSON record per row, in input order."""
    from hasten.pipeline.predict import predict_file

    _emit_lines(predict_file(**options), out=options["out"], as_json=as_json)


@cli.command()
@click.argument("a")
@click.option("--vs", help="Second checkpoint or bundle [default: A against itself, a null duel].")
@click.option("--data", required=True, help="Rows whose lengths are timed; labels give quality.")
@click.option("--task", help="Needed when A or --vs is a checkpoint, not a bundle.")
@click.option("--batch", type=int, default=1, show_default=True, help="Rows in a request.")
@click.option("--concurrency", type=int, default=1, show_default=True, help="Requests in flight, for throughput.")
@click.option("--requests", type=int, default=300, show_default=True, help="Timed requests a side.")
@click.option("--rounds", type=int, default=3, show_default=True, help="Fresh process pairs.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the sample.")
@_options(_DATA, _HARDWARE, _TRUST, _JSON)
def bench(as_json: bool, **options: Any) -> None:
    """A duel: A against --vs, interleaved in isolated processes, on your rows' real lengths."""
    from hasten.pipeline.bench import bench as duel
    from hasten.pipeline.bench import show

    with _reporter() as reporter:
        result = duel(options.pop("a"), reporter=reporter, **options)
    _emit(result.to_dict()) if as_json else show(result, console=_stdout())


@cli.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--data", help="Labelled rows: also check quality and speed against the manifest.")
@click.option("--quality-tolerance", default=1.0, show_default=True, help="Points of the metric that may be lost.")
@click.option(
    "--speed-tolerance", default=0.25, show_default=True, help="Share by which p50 may exceed the manifest's."
)
@_options(_DATA, _HARDWARE, _JSON)
def check(as_json: bool, **options: Any) -> None:
    """Verify BUNDLE: hashes, host, golden outputs; with --data also quality and speed. Exit 1 on regression."""
    from hasten.pipeline.check import check as verify
    from hasten.pipeline.check import show

    with _reporter() as reporter:
        result = verify(options.pop("bundle"), reporter=reporter, **options)
    _emit(result.to_dict()) if as_json else show(result, console=_stdout())
    sys.exit(0 if result.passed else 1)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@_JSON
def report(folder: Path, as_json: bool) -> None:
    """Show the run in FOLDER again, and rewrite its report.html."""
    from hasten.pipeline.result import open_result

    result = open_result(folder, rewrite=True)
    _show_result(result, as_json=as_json)


def main() -> None:
    """Entry point: user errors become a message and their exit code, never a traceback."""
    from hasten.records import HastenError

    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        _fail("interrupted", 130)
    except KeyboardInterrupt:
        _fail("interrupted; the same command continues where this one stopped", 130)
    except click.ClickException as error:
        if "--json" not in sys.argv:
            error.show()
            sys.exit(error.exit_code)
        _fail(error.format_message(), error.exit_code)
    except HastenError as error:
        _fail(str(error), error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except OSError as error:
        _fail(f"{error}\n  to do: check that the disk has space and the folder may be written", 2)
    except Exception as error:
        traceback.print_exc()
        _fail(f"{type(error).__name__}: {error}\n  this is a fault of hasten, not of your input; please report it", 70)


def _fail(message: str, code: int) -> None:
    click.echo(f"error: {message}", err=True)
    if "--json" in sys.argv:
        with suppress(OSError):  # stdout may be what failed
            click.echo(json.dumps({"error": message, "exit_code": code}))
    sys.exit(code)


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def _reporter() -> Any:
    """A live bar on a terminal, plain lines elsewhere; always on stderr."""
    from contextlib import nullcontext

    from rich.console import Console

    from hasten.pipeline.progress import Bar, Lines

    console = Console(stderr=True)
    if console.is_terminal:
        return Bar(console)
    return nullcontext(Lines(lambda text: click.echo(text, err=True)))


def _stdout() -> Any:
    from rich.console import Console

    return Console()


def _emit(value: Any) -> None:
    click.echo(json.dumps(value, default=str))


def _emit_lines(records: Any, *, out: Path | None, as_json: bool) -> None:
    """JSONL to a file (whole or not at all) or stdout; with --json a single object."""
    if out is not None:
        count = _write_lines(records, out)
        _emit({"out": str(out), "n": count}) if as_json else click.echo(f"wrote {count} predictions to {out}", err=True)
    elif as_json:
        found = list(records)
        _emit({"predictions": found, "n": len(found)})
    else:
        for record in records:
            click.echo(json.dumps(record, ensure_ascii=False))


def _write_lines(records: Any, out: Path) -> int:
    """The whole file or nothing; how many records it holds."""
    part = out.with_name(out.name + ".part")
    try:
        with part.open("w", encoding="utf-8") as stream:
            count = sum(bool(stream.write(json.dumps(r, ensure_ascii=False) + "\n")) for r in records)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return count


def _show_result(result: Any, *, as_json: bool) -> None:
    _emit(result.to_dict()) if as_json else result.show(_stdout())
    if result.verdict.interrupted:
        sys.exit(130)
    sys.exit(1 if result.verdict.outcome == "not_met" else 0)
