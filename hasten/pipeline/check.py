"""A bundle as a gate: is it whole, does it compute what it did, is it as good and as fast?

Takes a bundle (and labelled rows), gives a :class:`CheckResult`. Damage and a wrong host
are InputErrors; a regression is a result that did not pass (exit code 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.bundle.answers import SCORED_TOGETHER, measured, scored
from hasten.bundle.golden import Golden, read_golden
from hasten.bundle.manifest import Manifest, read_manifest
from hasten.ledger import plain
from hasten.measure.host import busy_host, describe_host
from hasten.measure.statistics import latency
from hasten.measure.worker import Worker
from hasten.pipeline.arena import in_shares
from hasten.pipeline.contender import Contender, make_contender
from hasten.pipeline.progress import Reporter, Silent
from hasten.pipeline.request import parse_cores, parse_threads
from hasten.records import Columns, Host, InputError, Latency, ModelRef, Quality
from hasten.tasks import get_task
from hasten.tasks.generating import AGREEMENT, NEXT_TOKEN
from hasten.tasks.rows import Rows
from hasten.tasks.task import FEW_ROWS

if TYPE_CHECKING:
    from rich.console import Console

_TIMED_ROWS = 300
_REFERENCE_METRICS = ("fidelity", "perplexity kept", AGREEMENT, NEXT_TOKEN)
_TIMED_ANSWERS = 10


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked. ``passed`` is ``None`` where it is for information only."""

    name: str
    passed: bool | None
    detail: str


@dataclass(frozen=True, slots=True)
class CheckResult:
    """All findings; ``passed`` when none failed."""

    bundle: str
    findings: tuple[Finding, ...]
    quality: Quality | None
    latency_ms: Latency | None
    host: Host

    @property
    def passed(self) -> bool:
        return all(f.passed is not False for f in self.findings)

    def to_dict(self) -> dict[str, Any]:
        data: dict[str, Any] = plain(self)
        return {"passed": self.passed, **data}

    def __repr__(self) -> str:
        failed = [f"{f.name}: {f.detail}" for f in self.findings if f.passed is False]
        return f"<hasten check of {self.bundle}: {'passed' if self.passed else 'FAILED ' + '; '.join(failed)}>"


def check(
    bundle: str | Path,
    *,
    data: str | Path | None = None,
    quality_tolerance: float = 1.0,
    speed_tolerance: float = 0.25,
    threads: int | None = None,
    cores: str | tuple[int, ...] | None = None,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | None = None,
    reporter: Reporter | None = None,
) -> CheckResult:
    """Verify hashes, host instructions and golden outputs of ``bundle``; with ``data`` quality and speed too.

    ``quality_tolerance`` is in points below the manifest's figure, ``speed_tolerance`` the share by which the
    p50 may exceed the manifest's. Speed is compared only on the CPU model that the manifest names.
    Raises InputError for a damaged bundle, a host that cannot run it, or bad rows.
    """
    say, used = reporter or Silent(), parse_cores(cores)
    _check_tolerances(quality_tolerance, speed_tolerance)
    busy = busy_host()
    manifest = read_manifest(Path(bundle))
    width = min(parse_threads(threads, used) if threads is not None else manifest.workload.threads, len(used))
    host = describe_host(cores=used, threads=width)
    rows = (
        None if data is None else _labelled_rows(data, Columns(text_column, text_pair_column, label_column), manifest)
    )
    say.stage("opening and verifying", done=0, total=1, left_s=None)
    with Worker.start(cores=used, threads=width) as worker:
        side = make_contender(ModelRef(str(bundle)), task=None, worker=worker, scratch=Path())
        opened = side.open(worker, threads=width, cores=used)
        findings = [
            Finding("integrity", True, f"{len(manifest.files)} files match their hashes"),
            Finding("host", True, f"has {', '.join(manifest.instructions) or 'all that is needed'}"),
            _golden(manifest, read_golden(Path(bundle))),
            _precision(manifest, opened.precision),
        ]
        quality, times = None, None
        if rows is not None:
            say.stage(f"running {len(rows):,} rows", done=0, total=1, left_s=None)
            quality, times = _measure(worker, side, rows, batch=manifest.workload.batch)
            findings += [
                _quality(manifest, quality, tolerance=quality_tolerance),
                _speed(manifest, times, host=host, threads=width, tolerance=speed_tolerance, busy=busy),
            ]
    return CheckResult(str(bundle), tuple(findings), quality, times, host)


def _measure(worker: Worker, side: Contender, rows: Rows, *, batch: int) -> tuple[Quality, Latency]:
    encoded = side.encode(rows)
    batches = side.batches(side.timed(encoded), batch=batch)
    together = side.batches(encoded, batch=batch if side.answers is None else max(batch, SCORED_TOGETHER))
    outputs = side.outputs(encoded, in_shares(worker, together, generation=scored(side.answers)))
    most, generation = (_TIMED_ROWS if side.answers is None else _TIMED_ANSWERS), measured(side.answers)
    drawn = [batches[int(i)] for i in np.random.default_rng(0).permutation(len(batches))[:most]]
    # The calmest of three: a gate must not turn red because something else ran for a second.
    passes = [latency([whole for whole, _ in worker.spans(drawn, generation=generation)]) for _ in range(3)]
    best = min(passes, key=lambda found: found.p50)
    return side.reader.score(outputs, rows, side.labels, reference=None), best


def _golden(manifest: Manifest, golden: Golden) -> Finding:
    """What opening has just compared."""
    steps = "" if golden.follows is None else f", {len(golden.follows[0])} tokens through the cache included"
    return Finding(
        "golden outputs", True, f"within {manifest.golden_tolerance:.2%} of those verified when built{steps}"
    )


def _precision(manifest: Manifest, precision: str) -> Finding:
    same = precision == manifest.precision_ran
    return Finding("precision", same, f"runs in {precision}" + ("" if same else f", was {manifest.precision_ran}"))


def _quality(manifest: Manifest, found: Quality, *, tolerance: float) -> Finding:
    expected = manifest.measured.figures.quality
    if expected is None or expected.metric != found.metric or found.metric in _REFERENCE_METRICS:
        return Finding("quality", None, f"{found.metric} {found.value:.2f} (nothing comparable in the manifest)")
    lost = expected.value - found.value
    detail = f"{found.metric} {found.value:.2f} on {found.n} rows, {expected.value:.2f} when built ({-lost:+.2f} pt)"
    if found.n < FEW_ROWS:
        detail += f"; {found.n} rows are too few to tell"
    return Finding("quality", lost <= tolerance, detail)


def _speed(
    manifest: Manifest, found: Latency, *, host: Host, threads: int, tolerance: float, busy: Sequence[str]
) -> Finding:
    expected = manifest.measured.figures.latency_ms
    if expected is None:
        return Finding("speed", None, f"p50 {found.p50:.2f} ms (none in the manifest)")
    detail = f"p50 {found.p50:.2f} ms, {expected.p50:.2f} ms when built ({found.p50 / expected.p50 - 1:+.0%})"
    if host.cpu != manifest.host.cpu or threads != manifest.workload.threads:
        return Finding("speed", None, f"{detail}; another CPU or thread count, so not compared")
    holds = found.p50 <= expected.p50 * (1 + tolerance)
    if busy and not holds:
        return Finding("speed", None, f"{detail}; not judged: {busy[0]}")
    return Finding("speed", holds, detail)


def _labelled_rows(data: str | Path, columns: Columns, manifest: Manifest) -> Rows:
    task = get_task(manifest.task)
    rows, _ = task.check(task.read(data, columns=columns), manifest.labels)
    return rows


def _check_tolerances(quality: float, speed: float) -> None:
    for flag, value in (("--quality-tolerance", quality), ("--speed-tolerance", speed)):
        if not 0 <= value < 1000:
            raise InputError(f"{flag} {value:g}", expected="a number of at least 0", remedy="correct the flag")


def show(result: CheckResult, *, console: Console) -> None:
    """One line a finding, and the end."""
    signs = {True: "ok  ", False: "FAIL", None: "info"}
    for finding in result.findings:
        console.print(f"{signs[finding.passed]}  {finding.name:15} {finding.detail}", highlight=False, soft_wrap=True)
    console.print("PASSED" if result.passed else "REGRESSION: do not deploy this bundle here", highlight=False)
