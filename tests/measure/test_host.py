"""The host: quotas and limits are honoured, and asking is cheap."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hasten.measure import host as host_module
from hasten.measure.host import (
    available_memory_bytes,
    cpu_quota,
    describe_host,
    instruction_sets,
    instructions_in,
    total_memory_bytes,
    usable_cores,
)


def test_this_host_is_described() -> None:
    host = describe_host(cores=(0,), threads=1)
    assert host.cpu
    assert host.cores >= 1
    assert (host.cores_used, host.threads) == ((0,), 1)
    assert host.memory_bytes == total_memory_bytes() > available_memory_bytes() > 0
    assert "numpy" in host.versions
    assert host.instructions == tuple(sorted(instruction_sets()))


def test_only_relevant_flags_are_kept() -> None:
    x86 = "processor\t: 0\nmodel name\t: X\nflags\t\t: fpu vme avx2 avx512_vnni amx_int8 lahf_lm\n"
    assert instructions_in(x86) == {"avx2", "avx512_vnni", "amx_int8"}
    assert instructions_in("processor : 0\nFeatures : fp asimd asimddp crc32\n") == {"asimd", "asimddp"}
    assert instructions_in("processor : 0\n") == frozenset()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_cpu_quota_of_both_cgroup_versions(
    tmp_path: Path, files: dict[str, str], expected: float | None
) -> None:
    _write(tmp_path, files)
    assert cpu_quota(tmp_path) == expected


def test_usable_cores_follow_affinity_and_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {7, 2, 5, 3}, raising=False)
    assert usable_cores() == (2, 3, 5, 7)
    _write(tmp_path, {"cpu.max": "250000 100000"})
    assert usable_cores() == (2, 3)
    _write(tmp_path, {"cpu.max": "50000 100000"})
    assert usable_cores() == (2,)


@pytest.mark.parametrize(
    "files",
    [
        {
            "memory.max": "1000000000",
            "memory.current": "700000000",
            "memory.stat": "anon 5\ninactive_file 100000000",
        },
        {
            "memory/memory.limit_in_bytes": "1000000000",
            "memory/memory.usage_in_bytes": "700000000",
            "memory/memory.stat": "inactive_file 100000000",
        },
    ],
)
def test_memory_stays_within_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str]
) -> None:
    monkeypatch.setattr(host_module, "CGROUP", tmp_path)
    _write(tmp_path, files)
    assert total_memory_bytes() == 1_000_000_000
    assert available_memory_bytes() == 400_000_000, "file cache can be given back"


def test_no_limit_means_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "CGROUP", tmp_path)
    bare = total_memory_bytes()
    _write(tmp_path, {"memory.max": "max", "memory/memory.limit_in_bytes": "9223372036854771712"})
    assert total_memory_bytes() == bare


def test_importing_the_room_loads_nothing_heavy() -> None:
    rooms = ("host", "worker", "duel", "throughput", "quality", "energy", "statistics")
    script = (
        f"import sys; {'; '.join(f'import hasten.measure.{room}' for room in rooms)}; "
        "print([m for m in ('torch', 'scipy', 'pandas', 'transformers', 'zeus') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
