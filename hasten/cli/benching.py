"""The verb that times: bench, a duel of two models, or one that writes on every runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from hasten.cli.options import DATA, HARDWARE, JSON, TRUST, with_options
from hasten.cli.output import emit, names, reporter, stdout

# Options that mean something in one of the two ways alone, and are refused in the other.
_OF_DUELS = ("vs", "batch", "concurrency", "new_tokens", "chat", "prefix", "text_pair_column", "label_column")
_OF_STREAMS = ("runtimes", "techniques", "input_tokens", "output_tokens", "streams")


@click.command()
@click.argument("a")
@click.option("--vs", help="Second checkpoint or bundle [default: A against itself, a null duel].")
@click.option("--data", help="Rows whose lengths are timed; labels give quality. With --generate texts for prompts.")
@click.option("--task", help="Needed when A or --vs is a checkpoint, not a bundle.")
@click.option("--batch", type=int, help="Rows in a request [default: 1].")
@click.option("--concurrency", type=int, help="Requests in flight, for throughput [default: 1].")
@click.option("--requests", type=int, help="Timed requests a side [default: 300; answers with --generate: 6].")
@click.option("--rounds", type=int, default=3, show_default=True, help="Fresh processes of each side.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the sample.")
@click.option("--new-tokens", type=int, help="Tokens of an answer [default: a bundle's own, else 64].")
@click.option("--chat", is_flag=True, default=None, help="Put prompts through the tokenizers' chat templates.")
@click.option("--prefix", help="Put this in front of every text.")
@click.option("--generate", is_flag=True, help="Time how A writes on --runtimes, instead of a duel.")
@click.option("--runtimes", help="With --generate: these, comma-separated [default: all that are here].")
@click.option("--techniques", help="With --generate: such as int8,int4 [default: each precision once].")
@click.option("--input-tokens", type=int, help="With --generate: tokens of a prompt [default: 512].")
@click.option("--output-tokens", type=int, help="With --generate: tokens of an answer [default: 128].")
@click.option("--streams", help="With --generate: how many are written at once [default: 1,16].")
@with_options(DATA, HARDWARE, TRUST, JSON)
def bench(as_json: bool, generate: bool, **options: Any) -> None:
    """A duel: A against --vs, interleaved in isolated processes, on your rows' real lengths.

    With --generate: tokens a second, time to first token and per token, and memory of A on every runtime.
    """
    a, given = options.pop("a"), {name: value for name, value in options.items() if value is not None}
    _check(given, generate=generate)
    if generate:
        _streams(a, given, as_json=as_json)
        return
    from hasten.pipeline.bench import bench as duel
    from hasten.pipeline.bench import show

    with reporter() as say:
        result = duel(a, reporter=say, **given)
    emit(result.to_dict()) if as_json else show(result, console=stdout())


def _streams(model: str, options: dict[str, Any], *, as_json: bool) -> None:
    from hasten.pipeline.streams import bench_streams
    from hasten.report.streams_terminal import show_streams

    for name in ("runtimes", "techniques"):
        options[name] = names(options.get(name))
    with reporter(bound="about") as say:
        result = bench_streams(model, reporter=say, **options).to_dict()
    emit(result) if as_json else show_streams(result, console=stdout())


def _check(given: Mapping[str, Any], *, generate: bool) -> None:
    from hasten.records import InputError

    wrong = next((name for name in (_OF_DUELS if generate else _OF_STREAMS) if name in given), None)
    if wrong is not None:
        flag = f"--{wrong.replace('_', '-')}"
        raise InputError(
            f"{flag} {'with' if generate else 'without'} --generate",
            expected="a duel of rows, or with --generate a model that writes on every runtime",
            remedy=f"leave {flag} out" if generate else "add --generate",
        )  # fmt: skip
    if not generate and "data" not in given:
        raise InputError(
            "bench without --data", expected="rows whose lengths are timed",
            remedy="name them with --data, or add --generate for a model that writes",
        )  # fmt: skip
