"""The host: quotas and limits are honoured, and asking is cheap."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hasten.measure import host as host_module
from hasten.measure.cgroup import ControlGroups
from hasten.measure.host import (
    available_memory_bytes,
    describe_host,
    instruction_sets,
    instructions_in,
    oom_kills,
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
    assert instructions_in("processor : 0\nFeatures : fp asimd asimddp crc32\n") == {"neon", "dotprod"}
    assert instructions_in("processor : 0\n") == frozenset()


def test_a_mac_reports_the_same_names(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        ("hw.optional",): "hw.optional.neon: 1\nhw.optional.arm.FEAT_DotProd: 1\nhw.optional.arm.FEAT_BF16: 0\n",
        (
            "-n",
            "machdep.cpu.features",
            "machdep.cpu.leaf7_features",
        ): "SSE4.2 AVX1.0\nAVX2 AVX512F AVX512VNNI\n",
    }
    monkeypatch.setattr(host_module, "_sysctl", lambda *arguments: answers[arguments])
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(host_module, "CPUINFO", Path("/nowhere"))
    assert instruction_sets.__wrapped__() == {
        "neon", "dotprod", "sse4_2", "avx", "avx2", "avx512f", "avx512_vnni",
    }  # fmt: skip


def test_usable_cores_follow_affinity_and_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = ControlGroups(mount=tmp_path, membership=tmp_path / "none")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {7, 2, 5, 3}, raising=False)
    assert usable_cores(groups) == (2, 3, 5, 7)
    (tmp_path / "cpu.max").write_text("250000 100000")
    assert usable_cores(groups) == (2, 3)
    (tmp_path / "cpu.max").write_text("50000 100000")
    assert usable_cores(groups) == (2,)


def test_memory_stays_within_the_container(tmp_path: Path) -> None:
    groups = ControlGroups(mount=tmp_path, membership=tmp_path / "none")
    bare = total_memory_bytes(groups)
    assert bare > 1_000_000_000
    (tmp_path / "memory.max").write_text("1000000000")
    (tmp_path / "memory.current").write_text("700000000")
    assert total_memory_bytes(groups) == 1_000_000_000
    assert available_memory_bytes(groups) == 300_000_000


def test_oom_kills_are_read_from_the_kernel_or_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "VMSTAT", tmp_path / "vmstat")
    assert oom_kills() is None
    (tmp_path / "vmstat").write_text("pgfault 9\noom_kill 3\noom_kill_x 5\n")
    assert oom_kills() == 3


def test_importing_the_room_loads_nothing_heavy() -> None:
    rooms = ("host", "worker", "duel", "throughput", "quality", "energy", "statistics")
    script = (
        f"import sys; {'; '.join(f'import hasten.measure.{room}' for room in rooms)}; "
        "print([m for m in ('torch', 'scipy', 'pandas', 'transformers', 'zeus') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
