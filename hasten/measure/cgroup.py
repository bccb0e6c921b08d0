"""What the Linux control groups around this process grant it: processors and memory.

Takes the mount point and this process's membership file, gives bounds; ``None`` where there is none.
Knows both versions. Every group from the own one up to the mount counts, because each may bound its children;
in a container the own path may not be visible, then only the mount itself does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

UNLIMITED_BYTES = 1 << 60  # version 1 writes a huge page-rounded number for "no limit"


@dataclass(frozen=True, slots=True)
class ControlGroups:
    """Where to look; the defaults are this process on a common system."""

    mount: Path = Path("/sys/fs/cgroup")
    membership: Path = Path("/proc/self/cgroup")

    def cpu_quota(self) -> float | None:
        """Processors' worth of time, the tightest bound."""
        found = [quota for group in self._groups("cpu") if (quota := _cpu_quota(group)) is not None]
        return min(found, default=None)

    def memory_limit_bytes(self) -> int | None:
        """The tightest bound on memory."""
        limits = [limit for group in self._groups("memory") if (limit := _memory_limit(group)) is not None]
        return min(limits, default=None)

    def memory_left_bytes(self) -> int | None:
        """What can still be taken before the first bound is met."""
        left = [
            max(0, limit - used)
            for group in self._groups("memory")
            if (limit := _memory_limit(group)) is not None and (used := _memory_used(group)) is not None
        ]
        return min(left, default=None)

    def _groups(self, controller: str) -> list[Path]:
        """Folders that may bound us, of version 2 (its line names no controller) and of ``controller``."""
        found = []
        for line in (read(self.membership) or "").splitlines():
            _, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            if controllers and controller not in controllers.split(","):
                continue
            own = PurePosixPath(path.lstrip("/"))
            base = self.mount / controller if controllers else self.mount
            if ".." not in own.parts:
                found += [base / part for part in (own, *own.parents)]
        return list(dict.fromkeys([*found, self.mount, self.mount / controller]))


OWN = ControlGroups()


def read(path: Path) -> str | None:
    """The stripped text of a small system file, ``None`` where it is absent or not ours to read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def _cpu_quota(group: Path) -> float | None:
    parts = (read(group / "cpu.max") or "").split()
    if not parts:
        parts = [read(group / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")]
    try:
        quota, period = (int(part) for part in parts)
    except ValueError:  # "max", or no such controller
        return None
    return quota / period if quota > 0 and period > 0 else None


def _memory_limit(group: Path) -> int | None:
    text = read(group / "memory.max") or read(group / "memory.limit_in_bytes") or ""
    return int(text) if text.isdigit() and int(text) < UNLIMITED_BYTES else None


def _memory_used(group: Path) -> int | None:
    """What the group holds, less the file cache that the kernel gives back on demand."""
    text = read(group / "memory.current") or read(group / "memory.usage_in_bytes") or ""
    if not text.isdigit():
        return None
    pairs = (line.split() for line in (read(group / "memory.stat") or "").splitlines())
    stat = {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}
    # version 1 counts children only in the total_ rows
    return max(0, int(text) - stat.get("total_inactive_file", stat.get("inactive_file", 0)))
