"""How fast a model writes on every runtime, for one stream and for several at once: ``hasten bench --generate``.

Takes a checkpoint, a GGUF file or a bundle and lengths, gives a
:class:`hasten.pipeline.stream_figures.StreamsResult`: of every side and number of streams tokens a second, times to the
first and to each further token, memory, and what share of the host's bandwidth a step uses. Answers have one length
whatever the model says; nothing is scored.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hasten.measure.host import available_memory_bytes, busy_host, describe_host
from hasten.measure.streams import Course, Lane, look, race
from hasten.measure.worker import Worker
from hasten.pipeline.contender import is_bundle
from hasten.pipeline.progress import Reporter, Silent
from hasten.pipeline.prompts import Prompts, tokens_of, vocabulary
from hasten.pipeline.request import checked_seed, parse_cores, parse_threads
from hasten.pipeline.stream_exports import Exports, offers
from hasten.pipeline.stream_figures import Lengths, StreamSide, StreamsResult, figures_of
from hasten.pipeline.stream_sides import Side, Writer, of_bundle
from hasten.plan.space import check_known
from hasten.records import Columns, InputError, MissingDependency, ModelRef, Rejected
from hasten.runtimes import RUNTIMES
from hasten.tasks import get_task

_MEMORY_SHARE = 0.7  # of what is free may be taken by sides that are there at once
_MOST_STREAMS, _MOST_TOKENS = 4096, 1 << 20  # a slip of the finger should not take all memory


def bench_streams(
    model: str | Path,
    *,
    runtimes: Sequence[str] | None = None,
    techniques: Sequence[str] | None = None,
    task: str | None = None,
    data: str | Path | None = None,
    input_tokens: int = 512,
    output_tokens: int = 128,
    streams: str | Sequence[int] = (1, 16),
    rounds: int = 3,
    requests: int = 6,
    threads: int | None = None,
    cores: str | tuple[int, ...] | None = None,
    seed: int = 0,
    text_column: str | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    reporter: Reporter | None = None,
) -> StreamsResult:
    """Time how ``model`` reads ``input_tokens`` and writes ``output_tokens`` on each of ``runtimes`` (all by default).

    Every form gets ``requests`` answers of each number of ``streams``, in ``rounds`` fresh processes. Without
    ``techniques`` a runtime runs once in each of its precisions. Prompts are random tokens, or texts of ``data``.
    A runtime that refuses the model keeps its reason. Raises InputError for bad input, a model that writes no text,
    lengths that it has no positions for, and when no side could be measured.
    """
    say, used = reporter or Silent(), parse_cores(cores)
    check_lengths(input_tokens, output_tokens, rounds=rounds, requests=requests)
    check_known("runtime", runtimes, tuple(RUNTIMES))
    asked = _Asked(
        ModelRef(str(model), revision, allow_pickle, trust_remote_code), task, runtimes, techniques, data,
        Columns(text=text_column), parse_streams(streams), Lengths(input_tokens, output_tokens, rounds),
        max(1, -(-requests // rounds)), checked_seed(seed), used, parse_threads(threads, used),
    )  # fmt: skip
    warnings = busy_host()
    for warning in warnings:
        say.line(f"warning: {warning}")
    with tempfile.TemporaryDirectory(prefix="hasten-bench-") as scratch:
        say.stage("loading the model", done=0, total=1, left_s=None)
        writer, sides, course = asked.prepared(Path(scratch), say)
        peak = _peak_bytes_s(asked)
        lanes, together = _measured(sides, course, say)
    found = tuple(
        figures_of(side, lane, lengths=asked.lengths, writer=writer, peak=peak)
        for side, lane in zip(sides, lanes, strict=True)
    )
    _check_any(found)
    return StreamsResult(
        model=writer.name, task=writer.task, input_tokens=input_tokens, output_tokens=output_tokens,
        prompts="random tokens of the vocabulary" if data is None else str(data), rounds=rounds, together=together,
        peak_gb_s=None if peak is None else peak / 1e9, sides=found, warnings=warnings,
        host=describe_host(cores=used, threads=asked.threads),
    )  # fmt: skip


# ------------------------------------------------------------------ what is asked


def parse_streams(given: str | Sequence[int]) -> tuple[int, ...]:
    """Numbers of streams from ``"1,16"``, each once and in order. Raises InputError for anything else."""
    parts = given.split(",") if isinstance(given, str) else list(given)
    try:
        counts = sorted({int(part) for part in parts})
    except ValueError:
        counts = []
    if not counts or counts[0] < 1 or counts[-1] > _MOST_STREAMS:
        raise InputError(
            f"--streams {(given if isinstance(given, str) else ','.join(map(str, given)))[:80]}",
            expected=f"whole numbers from 1 to {_MOST_STREAMS}, such as 1,16", remedy="correct the flag",
        )  # fmt: skip
    return tuple(counts)


def check_lengths(read: int, written: int, *, rounds: int, requests: int) -> None:
    """Raises InputError."""
    for flag, value, least in (
        ("--input-tokens", read, 1), ("--output-tokens", written, 2), ("--rounds", rounds, 1),
        ("--requests", requests, 1),
    ):  # fmt: skip
        if not least <= value <= _MOST_TOKENS:
            why = ": the first one comes with the prompt" if flag == "--output-tokens" else ""
            raise InputError(
                f"{flag} {value}",
                expected=f"a whole number from {least} to {_MOST_TOKENS}{why}",
                remedy="correct the flag",
            )


def _check_bundle(*, task: str | None, techniques: Sequence[str] | None) -> None:
    for flag, value in (("--task", task), ("--techniques", techniques)):
        if value is not None:
            raise InputError(
                f"{flag} with a bundle", expected="a bundle by itself: it runs as it was built",
                remedy=f"leave {flag} out, or give the checkpoint",
            )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Asked:
    """All that was asked for. ``turns`` are answers of each number of streams in each round."""

    ref: ModelRef
    task: str | None
    runtimes: Sequence[str] | None
    techniques: Sequence[str] | None
    data: str | Path | None
    columns: Columns
    streams: tuple[int, ...]
    lengths: Lengths
    turns: int
    seed: int
    cores: tuple[int, ...]
    threads: int

    def start(self) -> Worker:
        return Worker.start(cores=self.cores, threads=self.threads)

    def prepared(self, scratch: Path, say: Reporter) -> tuple[Writer, list[Side], Course]:
        """The model in every form, and what they will do. Raises InputError."""
        if is_bundle(self.ref.source):
            _check_bundle(task=self.task, techniques=self.techniques)
            writer, sides = of_bundle(
                Path(self.ref.source).expanduser(), runtimes=self.runtimes, start=self.start, threads=self.threads,
                cores=self.cores,
            )  # fmt: skip
            return writer, sides, self.course(writer)
        offered = offers(self.runtimes, self.techniques, threads=self.threads)
        with Exports(self.ref, task=self.task, start=self.start) as exports:
            course, sides = self.course(exports.writer), []
            for number, offer in enumerate(offered):
                if isinstance(offer, Side):
                    sides.append(offer)
                    continue
                text = f"making {offer.kind} {offer.label}"
                say.stage(text, done=number, total=len(offered), left_s=None)
                sides.append(exports.side(
                    offer, folder=scratch / str(number), cache=scratch / "cache", threads=self.threads,
                    cores=self.cores,
                ))  # fmt: skip
        return exports.writer, sides, course

    def course(self, writer: Writer) -> Course:
        """Raises InputError for lengths that the model has no positions for, and rows without tokens."""
        if self.data is None:
            ids = vocabulary(writer.files, words=writer.words)
        else:
            rows = get_task(writer.task).read(self.data, columns=self.columns, labels_wanted=False)
            ids = tokens_of(rows, writer.processor, words=writer.words)
        long = self.lengths
        prompts = Prompts(ids, self.data is None, long.read, self.seed, writer.facts.input_names)
        writer.facts.check(prompts(1, 0), new_tokens=long.written, start=writer.answers.start)
        answers = replace(writer.answers, timed=long.written, most=long.written)
        return Course(self.streams, prompts, answers.measured, long.rounds, self.turns, self.start)


# ------------------------------------------------------------------ measuring


def _measured(sides: Sequence[Side], course: Course, say: Reporter) -> tuple[list[Lane | None], bool]:
    """What was seen of each side; nothing of those that are refused."""
    lanes = [None if side.open is None else Lane(side.name, side.open) for side in sides]
    for number, (side, lane) in enumerate(zip(sides, lanes, strict=True)):
        if lane is None:
            say.line(f"{side.name}: refused: {side.reason}")
            continue
        say.stage(f"{side.name}: a first answer", done=number, total=len(sides), left_s=None)
        look(lane, course, check=side.wrong)
        say.line(_seen(lane))
    running = [lane for lane in lanes if lane is not None and lane.running(course)]
    taken = sum(max(memory.peak_rss_bytes for memory in lane.memory.values()) for lane in running)
    together = taken <= _MEMORY_SHARE * available_memory_bytes()
    if running:
        race(running, course, together=together, tell=lambda text, share, left_s: say.stage(
            text, done=share, total=1, left_s=left_s
        ))  # fmt: skip
    return lanes, together


def _seen(lane: Lane) -> str:
    said = [f"{n} stream{'s' * (n != 1)} in {whole / 1e3:.1f} s" for n, (_, whole) in lane.looked.items()]
    said += [f"{n} stream{'s' * (n != 1)} refused: {reason}" for n, reason in lane.refused.items()]
    return f"{lane.name}: a first answer: {', '.join(said)}"


def _peak_bytes_s(asked: _Asked) -> float | None:
    """What the cores read a second; ``None`` without torch, which is what reads."""
    try:
        with asked.start() as worker:
            return float(worker.call("hasten.measure.peaks:bandwidth_bytes_s"))
    except (Rejected, MissingDependency):
        return None


def _check_any(sides: Sequence[StreamSide]) -> None:
    """Raise InputError when every side refused: there is nothing to show but the reasons."""
    if any(side.streams for side in sides):
        return
    reasons = [s.refused if isinstance(s.refused, str) else "; ".join((s.refused or {}).values()) for s in sides]
    every = "; ".join(f"{f'{s.runtime} {s.label}'.strip()}: {why}" for s, why in zip(sides, reasons, strict=True))
    raise InputError(
        f"nothing could be measured: {every}", expected="a runtime that takes the model",
        remedy="name other --runtimes, or fewer --streams; 'hasten doctor' shows what is available here",
    )  # fmt: skip
