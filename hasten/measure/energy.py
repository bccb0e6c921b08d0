"""Joules per request: metered where the processor has a readable meter, else estimated and labelled so.

Takes a worker with an open session and requests; gives an Energy record. Knows no runtime. The meter is
zeus's RAPL reader, which counts whole processor packages, so the idle draw measured beside it is subtracted.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from hasten.measure.throughput import GRACE_S
from hasten.measure.worker import Worker
from hasten.measure.writing import answered
from hasten.records import Energy, InputError

if TYPE_CHECKING:
    from hasten.measure.worker_main import Session

ASSUMED_WATTS_PER_CORE = 5.0  # a busy server core: 150-350 W packages of 32-64 cores
WINDOWS = 5  # pairs of one idle and one busy window
IDLE_SHARE = 0.25  # of the time goes to idle windows
MIN_WINDOW_S = 0.1  # RAPL counters step every millisecond; a window must be long beside that

Meter = Callable[[], float]  # joules since some moment
Busy = Callable[[float], tuple[int, float]]  # seconds -> (requests done, CPU seconds)


def energy(
    worker: Worker, requests: Sequence[Mapping[str, Any]], *, cores_used: int, seconds: float, generation: Any = None
) -> Energy | None:
    """Joules per request (per answer, with a ``generation``) over about ``seconds`` of work; ``None`` when nothing ran
    in that time."""
    if not requests or seconds <= 0 or cores_used < 1:
        raise InputError(
            f"{len(requests)} requests, {seconds} s, {cores_used} cores",
            expected="at least one request and core, and some time",
            remedy="correct the workload",
        )
    meter = package_meter()
    busy = partial(_busy, worker, requests, generation)
    return _estimated(busy, cores_used=cores_used, seconds=seconds) if meter is None else _metered(busy, meter, seconds)


def package_meter() -> Meter | None:
    """Reads the joules of all processor packages and memory; ``None`` where no meter can be read."""
    try:
        with warnings.catch_warnings():  # zeus imports the old name of nvidia-ml-py
            warnings.simplefilter("ignore", FutureWarning)
            from zeus.device.cpu import get_cpus
            from zeus.exception import ZeusBaseError
    except ImportError:
        return None
    try:
        cpus = get_cpus()
        packages = range(len(cpus))
        if len(packages) == 0:
            return None

        def joules() -> float:
            readings = [cpus.get_total_energy_consumption(index) for index in packages]
            return float(sum(reading.cpu_mj + (reading.dram_mj or 0.0) for reading in readings)) / 1000

        joules()
    except (ZeusBaseError, OSError):  # no meter, or only root may read it
        return None
    return joules


def repeat(
    session: Session, *, requests: Sequence[Mapping[str, Any]], seconds: float, generation: Any = None
) -> tuple[int, float]:
    """(requests done, CPU seconds of all threads) of one caller in this process."""
    wanted = [{name: request[name] for name in session.input_names} for request in requests]
    answered(session, wanted[0], generation)
    cpu_before, done, end = time.process_time(), 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        answered(session, wanted[done % len(wanted)], generation)
        done += 1
    return done, time.process_time() - cpu_before


def _busy(worker: Worker, requests: Sequence[Mapping[str, Any]], generation: Any, seconds: float) -> tuple[int, float]:
    done, cpu_s = worker.call_with_session(
        "hasten.measure.energy:repeat", timeout_s=seconds + GRACE_S, requests=list(requests), seconds=seconds,
        generation=generation,
    )  # fmt: skip
    return int(done), float(cpu_s)


def _metered(busy: Busy, meter: Meter, seconds: float) -> Energy | None:
    """Median over windows of (busy joules - idle watts x busy seconds) / requests."""
    idle_s = max(MIN_WINDOW_S, seconds * IDLE_SHARE / WINDOWS)
    busy_s = max(MIN_WINDOW_S, seconds * (1 - IDLE_SHARE) / WINDOWS)
    each, idle_watts = [], []
    for _ in range(WINDOWS):
        idle_j, idle_spent_s, _ = _window(meter, lambda: time.sleep(idle_s))
        busy_j, busy_spent_s, (done, _) = _window(meter, lambda: busy(busy_s))
        if done:
            idle_watts.append(idle_j / idle_spent_s)
            each.append((busy_j - idle_watts[-1] * busy_spent_s) / done)
    if not each or statistics.median(each) <= 0:
        return None  # the rest of the machine drowned the work; no figure is better than a negative one
    note = (
        f"RAPL packages and memory, median of {len(each)} windows, idle "
        f"{statistics.median(idle_watts):.1f} W subtracted; "
        f"windows {min(each):.3g} to {max(each):.3g} J"
    )
    return Energy(joules_per_request=statistics.median(each), method="rapl", note=note)


def _window(meter: Meter, work: Callable[[], Any]) -> tuple[float, float, Any]:
    """(joules, seconds, what ``work`` returned)."""
    joules, started = meter(), time.perf_counter()
    result = work()
    return meter() - joules, time.perf_counter() - started, result


def _estimated(busy: Busy, *, cores_used: int, seconds: float) -> Energy | None:
    done, cpu_s = busy(seconds)
    if done == 0:
        return None
    note = (
        f"no readable energy meter: {cpu_s / done * 1000:.3g} ms of CPU time per request on {cores_used} "
        f"core(s) x an assumed {ASSUMED_WATTS_PER_CORE:g} W per busy core"
    )
    return Energy(
        joules_per_request=cpu_s / done * ASSUMED_WATTS_PER_CORE,
        method="estimated",
        note=note,
    )
