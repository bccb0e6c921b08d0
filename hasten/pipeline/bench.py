"""A duel of two checkpoints or bundles on the user's rows.

Takes two sources and a data file, gives a :class:`BenchResult`: latency of both with the
speed-up's interval, quality with its drop where there are labels. A source against
itself is a null duel, which should claim nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.bundle.answers import SCORED_TOGETHER, measured, scored
from hasten.ledger import plain
from hasten.measure.duel import Round, claims_slowdown, claims_speedup, duel, speedup
from hasten.measure.host import busy_host, describe_host
from hasten.measure.throughput import loop_s, throughput
from hasten.measure.worker import Worker
from hasten.pipeline.arena import in_shares, times_of
from hasten.pipeline.contender import Contender, asked_alike, make_contender, task_of, workload_for
from hasten.pipeline.progress import Reporter, Silent
from hasten.pipeline.request import checked_seed, parse_cores, parse_threads
from hasten.pipeline.scoring import drop_of
from hasten.records import Columns, Figures, Host, InputError, Interval, Latency, ModelRef, Workload
from hasten.tasks import get_task
from hasten.tasks.rows import Rows

if TYPE_CHECKING:
    from rich.console import Console

_PER_TURN = 10
_QUALITY_ROWS = 1000
_WRITTEN_ROWS = 200
_THROUGHPUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Side:
    """One contender's figures."""

    name: str
    label: str
    figures: Figures


@dataclass(frozen=True, slots=True)
class BenchResult:
    """``speedup`` is how many times ``b`` is faster than ``a`` (p50 ratio); ``claim`` says it in words."""

    a: Side
    b: Side
    speedup: Interval
    claim: str
    quality_drop: Interval | None
    rows: int
    host: Host

    def to_dict(self) -> dict[str, Any]:
        data: dict[str, Any] = plain(self)
        return data

    def __repr__(self) -> str:
        return f"<hasten duel: {self.claim}>"


def bench(
    a: str | Path,
    *,
    data: str | Path,
    vs: str | Path | None = None,
    task: str | None = None,
    batch: int = 1,
    concurrency: int = 1,
    requests: int = 300,
    rounds: int = 3,
    threads: int | None = None,
    cores: str | tuple[int, ...] | None = None,
    seed: int = 0,
    new_tokens: int | None = None,
    chat: bool = False,
    prefix: str = "",
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    reporter: Reporter | None = None,
) -> BenchResult:
    """Time ``a`` against ``vs`` (default: itself) interleaved, in ``rounds`` fresh pairs of processes.

    ``new_tokens``, ``chat`` and ``prefix`` say what two checkpoints write after what; a bundle has its own.
    Raises InputError for bad sources or rows, or contenders of different tasks or labels.
    """
    say, used = reporter or Silent(), parse_cores(cores)
    for warning in busy_host():
        say.line(f"warning: {warning}")
    width = parse_threads(threads, used)
    _positive(batch=batch, concurrency=concurrency, requests=requests, rounds=rounds)
    checked_seed(seed)
    refs = [ModelRef(str(s), revision, allow_pickle, trust_remote_code) for s in (a, vs if vs is not None else a)]
    workload = workload_for(refs, Workload(new_tokens=new_tokens, chat=chat, prefix=prefix), task=task)
    read = task_of(refs, task=task).read(data, columns=Columns(text_column, text_pair_column, label_column))
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hasten-bench-")))
        say.stage("loading both sides", done=0, total=1, left_s=None)
        with Worker.start(cores=used, threads=width) as loader:
            sides = _both(refs, partial(make_contender, task=task, worker=loader, workload=workload), scratch)
        rows, labelled = _checked(read, sides[0])
        arena = _Arena(sides, rows, labelled, batch=batch, threads=width, cores=used, seed=seed)
        made = []
        for number in range(rounds):
            say.stage(f"round {number + 1} of {rounds}", done=number, total=rounds, left_s=None)
            made.append(arena.round(number, requests=max(1, requests // rounds)))
            say.line(f"round {number + 1}: {speedup(made[-1:]).estimate:.2f}x")
        say.stage("quality and throughput", done=rounds, total=rounds, left_s=None)
        figures, drop = arena.figures(made, concurrency=concurrency)
    gain = speedup(made, seed=seed)
    described = [Side(s.name, s.label, f) for s, f in zip(sides, figures, strict=True)]
    return BenchResult(
        a=described[0], b=described[1], speedup=gain, claim=claim_of(gain) + disagreement(made), quality_drop=drop,
        rows=len(rows), host=describe_host(cores=used, threads=width),
    )  # fmt: skip


def claim_of(gain: Interval) -> str:
    """What may be said of the ratio."""
    span = f"{gain.estimate:.2f}x ({gain.low:.2f}-{gain.high:.2f})"
    if claims_speedup(gain):
        return f"B is faster: {span}"
    if claims_slowdown(gain):
        return f"B is slower: {span}"
    return f"no difference beyond the noise: {span}"


def disagreement(made: list[Round]) -> str:
    """A remark when single rounds are a factor of two apart: then something else took the cores."""
    ratios = [speedup([one]).estimate for one in made]
    if max(ratios) < 2 * min(ratios):
        return ""
    return f"; single rounds lie between {min(ratios):.1f}x and {max(ratios):.1f}x: repeat it on an idle machine"


@dataclass(frozen=True, slots=True)
class _Arena:
    """Both sides with their rows; each round opens fresh processes."""

    sides: list[Contender]
    rows: Rows
    labelled: bool
    batch: int
    threads: int
    cores: tuple[int, ...]
    seed: int

    def round(self, number: int, *, requests: int) -> Round:
        turns = max(2, requests // _PER_TURN)
        drawn = np.random.default_rng(self.seed + number).permutation(len(self.rows))
        rows = self.rows.take([int(i) for i in drawn[: requests * self.batch]])
        with self._worker() as first, self._worker() as second:
            for side, worker in zip(self.sides, (first, second), strict=True):
                side.open(worker, threads=self.threads, cores=self.cores)
            asked, answered = (side.batches(side.timed(side.encode(rows)), batch=self.batch) for side in self.sides)
            return duel(
                first,
                second,
                asked,
                for_b=answered,
                generations=(measured(self.sides[0].answers), measured(self.sides[1].answers)),
                turns=turns,
                per_turn=max(1, requests // turns),
                warmup=10,
                seed=self.seed + number,
            )

    def figures(self, made: list[Round], *, concurrency: int) -> tuple[list[Figures], Interval | None]:
        """Latency from the rounds; quality, throughput, memory and load time of each side alone."""
        task, answers = self.sides[0].reader, self.sides[0].answers
        rows = self.rows.take(range(min(len(self.rows), _QUALITY_ROWS if answers is None else _WRITTEN_ROWS)))
        outputs, found = [], []
        for side, name in zip(self.sides, ("a", "b"), strict=True):
            times = times_of(made, name, None if answers is None else answers.timed)
            encoded = side.encode(rows)
            batches = side.batches(side.timed(encoded), batch=self.batch)
            together = self.batch if answers is None else max(self.batch, SCORED_TOGETHER)
            with self._worker() as worker:
                opened = side.open(worker, threads=self.threads, cores=self.cores)
                peak = side.peak_bytes(worker, encoded, batch=self.batch)
                many = side.batches(encoded, batch=together)
                outputs.append(side.outputs(encoded, in_shares(worker, many, generation=scored(side.answers))))
                peak = peak or worker.stats().peak_rss_bytes
                per_s = throughput(
                    worker, batches, concurrency=concurrency, seconds=loop_s(times.whole, least_s=_THROUGHPUT_S),
                    batch=self.batch, generation=measured(side.answers),
                )  # fmt: skip
            quality = task.score(outputs[-1], rows, side.labels, reference=outputs[0]) if self.labelled else None
            made_of = Figures(
                tokens_per_s=None if side.answers is None else per_s * side.answers.timed,
                throughput_per_s=per_s,
                bytes=side.bytes,
                peak_rss_bytes=peak,
                load_s=opened.load_s,
                first_call_ms=worker.first_call_ms,
                quality=quality,
                precision_ran=opened.precision,
                threads=self.threads,
            )
            found.append(times.put_into(made_of))
        if not self.labelled:
            return found, None
        return found, drop_of(task, rows, *outputs, labels=self.sides[0].labels, seed=self.seed)

    def _worker(self) -> Worker:
        return Worker.start(cores=self.cores, threads=self.threads)


def show(result: BenchResult, *, console: Console) -> None:
    """Both sides in a table, and the claim."""
    from rich.table import Table

    table = Table(title=f"duel on {result.rows} rows", title_justify="left")
    for column in ("", "A", "B"):
        table.add_column(column, overflow="fold")
    for name, pick in _LINES.items():
        table.add_row(name, pick(result.a), pick(result.b))
    console.print(table)
    if result.quality_drop is not None:
        drop = result.quality_drop
        console.print(
            f"quality drop from A to B: {drop.estimate:.2f} pt ({drop.low:.2f}..{drop.high:.2f})",
            highlight=False,
        )
    console.print(result.claim, highlight=False)


def _ms(side: Side, name: str) -> str:
    return _span(side.figures.latency_ms, name)


def _span(latency: Latency | None, name: str) -> str:
    return f"{getattr(latency, name):.2f} ms" if latency else "-"


_LINES: dict[str, Callable[[Side], str]] = {
    "source": lambda s: s.name,
    "recipe": lambda s: f"{s.label} ({s.figures.precision_ran})",
    "p50": lambda s: _ms(s, "p50"),
    "p95": lambda s: _ms(s, "p95"),
    "p99": lambda s: _ms(s, "p99"),
    "first token": lambda s: _span(s.figures.ttft_ms, "p50"),
    "further token": lambda s: _span(s.figures.tpot_ms, "p50"),
    "throughput": lambda s: f"{s.figures.throughput_per_s:.1f} rows/s",
    "size": lambda s: f"{(s.figures.bytes or 0) / 1e6:.1f} MB",
    "peak memory": lambda s: f"{(s.figures.peak_rss_bytes or 0) / 1e6:.0f} MB",
    "load": lambda s: f"{s.figures.load_s:.2f} s",
    "quality": lambda s: (
        f"{s.figures.quality.metric} {s.figures.quality.value:.2f}" if s.figures.quality else "no labels"
    ),
}


def _both(refs: Sequence[ModelRef], make: Callable[..., Contender], scratch: Path) -> list[Contender]:
    """The sides, asked the same. Raises InputError where they do not compare."""
    sides = [make(ref, scratch=scratch / str(number)) for number, ref in enumerate(refs)]
    _check_alike(*sides)
    return asked_alike(sides)


def _checked(rows: Rows, side: Contender) -> tuple[Rows, bool]:
    """The rows, and whether they can be scored."""
    task = get_task(side.task)
    if rows.labels is None and (side.labels or getattr(task, "needs_references", False)):
        return rows, False
    checked, _ = task.check(rows, side.labels)
    return checked, True


def _check_alike(a: Contender, b: Contender) -> None:
    if a.task != b.task or a.labels != b.labels:
        raise InputError(
            f"{a.name} does {a.task} with {len(a.labels)} labels, {b.name} does {b.task} with {len(b.labels)}",
            expected="two models of the same task with the same labels in the same order",
            remedy="compare models that answer the same question",
        )


def _positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise InputError(f"--{name} {value}", expected="a whole number of at least 1", remedy="correct the flag")
