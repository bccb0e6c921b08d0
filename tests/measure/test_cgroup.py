"""Control groups: both versions, nested groups, and groups that cannot be seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from hasten.measure.cgroup import ControlGroups


@pytest.fixture
def groups(tmp_path: Path) -> ControlGroups:
    return ControlGroups(mount=tmp_path / "mount", membership=tmp_path / "membership")


def write(groups: ControlGroups, membership: str, files: dict[str, str]) -> None:
    groups.membership.write_text(membership)
    for name, text in files.items():
        (groups.mount / name).parent.mkdir(parents=True, exist_ok=True)
        (groups.mount / name).write_text(text)


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {}, None),
        ("4:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4.0),
        ("4:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("0::/job/step\n", {"job/cpu.max": "200000 100000", "job/step/cpu.max": "max 100000"}, 2.0),
        ("0::/job/step\n", {"job/cpu.max": "200000 100000", "job/step/cpu.max": "50000 100000"}, 0.5),
        ("0::/job\n", {"neighbour/cpu.max": "100000 100000"}, None),
        ("0::/unseen/outside\n", {"cpu.max": "300000 100000"}, 3.0),
        ("0::/../../x\n", {"cpu.max": "300000 100000"}, 3.0),
    ],
)
def test_cpu_quota(groups: ControlGroups, membership: str, files: dict[str, str], quota: float | None) -> None:
    write(groups, membership, files)
    assert groups.cpu_quota() == quota


def test_memory_of_version_2_gives_the_file_cache_back(groups: ControlGroups) -> None:
    files = {
        "job/memory.max": "1000000000",
        "job/memory.current": "700000000",
        "job/memory.stat": "anon 5\ninactive_file 100000000",
        "job/step/memory.max": "max",
        "job/step/memory.current": "1",
    }
    write(groups, "0::/job/step\n", files)
    assert groups.memory_limit_bytes() == 1_000_000_000
    assert groups.memory_left_bytes() == 400_000_000


def test_memory_of_version_1_counts_the_children(groups: ControlGroups) -> None:
    files = {
        "memory/job/memory.limit_in_bytes": "1000000000",
        "memory/job/memory.usage_in_bytes": "700000000",
        "memory/job/memory.stat": "inactive_file 0\ntotal_inactive_file 100000000",
        "memory/memory.limit_in_bytes": "9223372036854771712",
    }
    write(groups, "4:memory:/job\n0::/\n", files)
    assert groups.memory_limit_bytes() == 1_000_000_000
    assert groups.memory_left_bytes() == 400_000_000


def test_the_tightest_group_decides_what_is_left(groups: ControlGroups) -> None:
    files = {
        "a/memory.max": "5000", "a/memory.current": "4900",
        "a/b/memory.max": "3000", "a/b/memory.current": "1000",
    }  # fmt: skip
    write(groups, "0::/a/b\n", files)
    assert (groups.memory_limit_bytes(), groups.memory_left_bytes()) == (3000, 100)


def test_no_groups_no_bounds(groups: ControlGroups) -> None:
    assert (groups.cpu_quota(), groups.memory_limit_bytes(), groups.memory_left_bytes()) == (None, None, None)
