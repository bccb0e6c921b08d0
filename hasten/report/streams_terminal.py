"""How a bench of models that write looks in a terminal.

Takes its result as plain data (:meth:`hasten.pipeline.streams.StreamsResult.to_dict`), draws a table. Knows no
pipeline.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_COLUMNS = (
    "", "streams", "prefill tok/s", "decode tok/s", "first token", "per token", "GB/s", "of peak", "peak memory",
    "load",
)  # fmt: skip
_UNBOUNDED = 10_000
Data = Mapping[str, Any]


def show_streams(result: Data, *, console: Console) -> None:
    """A row for every side and number of streams, then who refused and why."""
    from rich.table import Table

    title = f"{result['model']}: {result['input_tokens']} tokens read, {result['output_tokens']} written"
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(_COLUMNS):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    for side in result["sides"]:
        for figures in side["streams"]:
            table.add_row(*_cells(side, figures))
    if not console.is_terminal:  # a file or a pipe has no width: eighty columns would cut every figure into pieces
        console.width = max(console.width, _wanted(table, console))
    console.print(table)
    for line in _lines(result):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _wanted(table: Table, console: Console) -> int:
    """Columns that the table takes when nothing is folded."""
    return int(console.measure(table, options=console.options.update(max_width=_UNBOUNDED)).maximum)


def _cells(side: Data, figures: Data) -> Iterator[str]:
    yield f"{side['runtime']} {side['label']}"
    yield str(figures["streams"])
    yield _span(figures["prefill_tok_s"])
    yield _span(figures["decode_tok_s"])
    yield f"{_span(figures['ttft_ms'])} ms"
    yield f"{_span(figures['tpot_ms'])} ms"
    yield "-" if figures["gb_s"] is None else _number(figures["gb_s"]["estimate"])
    yield "-" if figures["share_of_peak"] is None else f"{figures['share_of_peak']:.0%}"
    yield f"{figures['peak_rss_bytes'] / 1e6:.0f} MB"
    yield "-" if side["load_s"] is None else f"{side['load_s']:.2f} s"


def _lines(result: Data) -> Iterator[str]:
    for side in result["sides"]:
        name = f"{side['runtime']} {side['label']}".strip()
        refused = side["refused"]
        if isinstance(refused, str):
            yield f"{name}: refused: {refused}"
        else:
            yield from (f"{name}, {count} streams: refused: {reason}" for count, reason in (refused or {}).items())
    host = result["host"]
    peak = "" if result["peak_gb_s"] is None else f", which read {result['peak_gb_s']:.0f} GB/s at best"
    yield f"{host['cpu']}, {host['threads']} threads{peak}; medians with 95 % intervals; prompts: {result['prompts']}"
    if not result["together"]:
        yield "the sides ran one after the other in each round: their processes do not fit into memory together"
    yield from (f"warning: {warning}" for warning in result["warnings"])


def _span(interval: Data) -> str:
    return f"{_number(interval['estimate'])} ({_number(interval['low'])}-{_number(interval['high'])})"


def _number(value: float) -> str:
    """Three digits that say something, and no fractions of hundreds."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
