"""What is said of a model that writes for several streams: records, and how measurements become figures.

Takes the sides and what was seen of them, gives plain records. Measures nothing.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from hasten.ledger import plain
from hasten.measure.streams import Lane, rates
from hasten.pipeline.step_bytes import cache_bytes
from hasten.pipeline.stream_sides import Side, Writer
from hasten.records import Host, Interval


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of a prompt, tokens written after it, and fresh processes of each side."""

    read: int
    written: int
    rounds: int


@dataclass(frozen=True, slots=True)
class StreamFigures:
    """Of one number of ``streams``; rates are of all of them together, intervals of medians over ``answers``.

    ``peak_rss_bytes`` is the process's high-water mark (Python and loading included), ``rss_bytes`` what it held after
    the answer. A step reads ``step_bytes`` (weights, and keys and values at half of the answer), so ``gb_s``;
    ``share_of_peak`` is that of the bandwidth measured here. ``None``: not known.
    """

    streams: int
    prefill_tok_s: Interval
    decode_tok_s: Interval
    ttft_ms: Interval
    tpot_ms: Interval
    answers: int
    peak_rss_bytes: int
    rss_bytes: int
    step_bytes: float | None
    gb_s: Interval | None
    share_of_peak: float | None


@dataclass(frozen=True, slots=True)
class StreamSide:
    """One runtime in one form. ``refused``: why there is nothing at all, or by number of streams (as text)."""

    runtime: str
    label: str
    config: dict[str, Any] | None
    precision_ran: str | None
    bytes: int | None
    load_s: float | None
    streams: tuple[StreamFigures, ...]
    refused: str | dict[str, str] | None


@dataclass(frozen=True, slots=True)
class StreamsResult:
    """``together``: did the sides take turns answer by answer, or round by round? ``peak_gb_s``: bytes that all cores
    read a second here, at best."""

    model: str
    task: str
    input_tokens: int
    output_tokens: int
    prompts: str
    rounds: int
    together: bool
    peak_gb_s: float | None
    sides: tuple[StreamSide, ...]
    warnings: tuple[str, ...]
    host: Host

    def to_dict(self) -> dict[str, Any]:
        data: dict[str, Any] = plain(self)
        return data

    def __repr__(self) -> str:
        measured = sum(bool(side.streams) for side in self.sides)
        return f"<hasten bench of {self.model}: {measured} of {len(self.sides)} sides measured>"


def figures_of(side: Side, lane: Lane | None, *, lengths: Lengths, writer: Writer, peak: float | None) -> StreamSide:
    """``lane`` is ``None`` of a side that was refused; ``peak`` are the bytes that the cores read a second."""
    if lane is None:
        return StreamSide(side.runtime, side.label, side.config, None, None, None, (), side.reason)
    refused: str | dict[str, str] | None = {str(count): reason for count, reason in lane.refused.items()} or None
    if refused and not lane.spans and len(set(lane.refused.values())) == 1:
        refused = next(iter(lane.refused.values()))
    found = tuple(
        _of_streams(side, lane, count, lengths=lengths, writer=writer, peak=peak) for count in sorted(lane.spans)
    )
    load_s = statistics.median(lane.loads_s) if lane.loads_s else None
    return StreamSide(side.runtime, side.label, side.config, lane.precision or None, side.bytes, load_s, found, refused)


def _of_streams(
    side: Side, lane: Lane, count: int, *, lengths: Lengths, writer: Writer, peak: float | None
) -> StreamFigures:
    found = rates(lane.spans[count], streams=count, read=lengths.read, written=lengths.written, rounds=lengths.rounds)
    memory, read = lane.memory[count], None
    if side.reads is not None:
        behind = lengths.read + lengths.written / 2
        cache = 0.0 if writer.kept is None else cache_bytes(writer.kept, tokens=behind, precision=side.cache)
        read = side.reads + count * cache
    gb_s = None if read is None else _inverse(found.tpot_ms, read / 1e6)
    return StreamFigures(
        streams=count, prefill_tok_s=found.prefill_tok_s, decode_tok_s=found.decode_tok_s, ttft_ms=found.ttft_ms,
        tpot_ms=found.tpot_ms, answers=found.answers, peak_rss_bytes=memory.peak_rss_bytes,
        rss_bytes=memory.rss_bytes, step_bytes=read, gb_s=gb_s,
        share_of_peak=None if gb_s is None or peak is None else gb_s.estimate * 1e9 / peak,
    )  # fmt: skip


def _inverse(span: Interval, amount: float) -> Interval:
    return Interval(amount / span.estimate, amount / span.high, amount / span.low)
