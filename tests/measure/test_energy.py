"""Energy: idle draw is subtracted from a meter, and an estimate says that it is one."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping

import numpy as np
import pytest
from sessions_for_tests import FakeSession

from hasten.measure import energy as energy_module
from hasten.measure.energy import ASSUMED_WATTS_PER_CORE, FEWEST_REQUESTS, energy, package_meter, repeat, warm
from hasten.measure.worker import Worker
from hasten.records import InputError

REQUESTS = [{"input_ids": np.ones((1, 3), np.int64)}]
IDLE_WATTS, BUSY_WATTS = 40.0, 10.0


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker.start(cores=(), threads=1) as shared:
        shared.open("sessions_for_tests:open_fake", work_s=0.005, of_cpu=True)
        yield shared


def test_the_estimate_is_cpu_time_and_says_its_assumption(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy_module, "package_meter", lambda: None)
    found = energy(worker, REQUESTS, cores_used=1, seconds=0.5)
    assert found is not None
    assert found.method == "estimated"
    assert f"assumed {ASSUMED_WATTS_PER_CORE:g} W" in found.note
    assert found.joules_per_request == pytest.approx(0.005 * ASSUMED_WATTS_PER_CORE, rel=0.2)


def test_a_meter_has_its_idle_draw_subtracted(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    def joules() -> float:  # 40 W always, 10 W more for each CPU second of the child
        return time.perf_counter() * IDLE_WATTS + worker.stats().cpu_s * BUSY_WATTS

    monkeypatch.setattr(energy_module, "package_meter", lambda: joules)
    found = energy(worker, REQUESTS, cores_used=1, seconds=1.0)
    assert found is not None
    assert found.method == "rapl"
    assert "5 windows" in found.note
    assert re.search(r"idle (39\.[5-9]|40\.[0-5]) W", found.note)
    assert found.joules_per_request == pytest.approx(0.005 * BUSY_WATTS, rel=0.2)


def test_what_warms_up_is_in_no_window(monkeypatch: pytest.MonkeyPatch) -> None:
    with Worker.start(cores=(), threads=1) as fresh:
        fresh.open("sessions_for_tests:open_fake", work_s=0.04, first_s=0.4, of_cpu=True)
        monkeypatch.setattr(energy_module, "package_meter", lambda: lambda: fresh.stats().cpu_s * BUSY_WATTS)
        found = energy(fresh, REQUESTS, cores_used=1, seconds=0.2)
    assert found is not None
    # Three requests a window: one more that were not counted would be a third too much.
    assert found.joules_per_request == pytest.approx(0.04 * BUSY_WATTS, rel=0.15)


def test_every_request_counts_and_windows_hold_several(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    class Counting(FakeSession):
        def run(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
            calls.append(1)
            return super().run(arrays)

    done, _ = repeat(Counting(work_s=0.01), requests=REQUESTS, seconds=0.05)
    assert done == len(calls) >= 4
    assert warm(Counting(work_s=0.01, first_s=0.2), request=REQUESTS[0]) == pytest.approx(0.01, abs=0.008)
    lasted: list[float] = []

    def busy(seconds: float) -> tuple[int, float]:
        lasted.append(seconds)
        return 1, 1.0

    monkeypatch.setattr(energy_module, "WINDOWS", 2)
    energy_module._metered(busy, iter(range(99)).__next__, 0.2, least_s=FEWEST_REQUESTS * 7.0)
    assert lasted == [14.0, 14.0]


def test_a_meter_drowned_by_other_work_gives_no_figure(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([0.0, 1000.0, 1000.0, 1000.1] * 5)
    monkeypatch.setattr(energy_module, "package_meter", lambda: lambda: next(readings))
    assert energy(worker, REQUESTS, cores_used=1, seconds=0.3) is None


def test_the_meter_of_this_machine_grows_or_is_absent() -> None:
    meter = package_meter()
    if meter is None:
        pytest.skip("no readable energy meter here")
    before = meter()
    time.sleep(0.2)
    assert meter() > before


def test_nothing_to_run_is_an_error(worker: Worker) -> None:
    with pytest.raises(InputError):
        energy(worker, [], cores_used=1, seconds=1.0)
