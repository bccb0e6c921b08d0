"""The machine that measures: processor, cores, memory, instruction sets.

Takes nothing, gives a Host record and its parts. Imports neither torch nor scipy, so a bundle can ask it
while it opens. "Usable" and "available" mean: to this process, inside its container.
"""

from __future__ import annotations

import functools
import math
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from hasten.records import Host

CPUINFO = Path("/proc/cpuinfo")
CGROUP = Path("/sys/fs/cgroup")
CGROUP_V1_UNLIMITED = 1 << 60  # version 1 writes a huge page-rounded number for "no limit"
X86 = ("sse4_1", "sse4_2", "avx", "avx2", "f16c", "fma", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16")
X86_512 = ("avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16")
ARM = ("neon", "asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2")
RELEVANT = frozenset((*X86, *X86_512, *ARM))
APPLE_FEATURES = {
    "FEAT_DotProd": "asimddp",
    "FEAT_I8MM": "i8mm",
    "FEAT_BF16": "bf16",
    "FEAT_FP16": "asimdhp",
    "AdvSIMD": "neon",
}
LIBRARIES = (
    "numpy",
    "tokenizers",
    "torch",
    "transformers",
    "onnxruntime",
    "openvino",
    "onnx",
    "nncf",
    "scipy",
)


def describe_host(*, cores: tuple[int, ...], threads: int) -> Host:
    """This machine as a report needs it; ``cores`` and ``threads`` are those the workload uses."""
    return Host(
        cpu=_cpu_name(),
        cores=os.cpu_count() or 1,
        cores_used=cores,
        threads=threads,
        memory_bytes=total_memory_bytes(),
        instructions=tuple(sorted(instruction_sets())),
        os=platform.platform(),
        python=platform.python_version(),
        versions=_versions(),
        gpus=_gpus(),
    )


@functools.cache
def instruction_sets() -> frozenset[str]:
    """The vector and matrix instruction sets that matter to the runtimes, by their Linux names."""
    if CPUINFO.exists():
        return instructions_in(CPUINFO.read_text(errors="replace"))
    if sys.platform == "darwin":
        return _apple_instructions()
    return frozenset()


def instructions_in(cpuinfo: str) -> frozenset[str]:
    """The relevant flags of the first processor in the text of ``/proc/cpuinfo``."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split()) & RELEVANT
    return frozenset()


def usable_cores() -> tuple[int, ...]:
    """Core numbers this process may run on, no more of them than the container's CPU quota allows."""
    cores = (
        sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    )
    quota = cpu_quota(CGROUP)
    return tuple(cores if quota is None else cores[: max(1, math.floor(quota))])


def total_memory_bytes() -> int:
    """Physical memory, or the container's limit where that is lower."""
    import psutil  # type: ignore[import-untyped, unused-ignore]

    total = int(psutil.virtual_memory().total)
    limit = _memory_limit(CGROUP)
    return total if limit is None else min(total, limit)


def available_memory_bytes() -> int:
    """Memory that can be taken without swapping or meeting the container's limit."""
    import psutil

    available = int(psutil.virtual_memory().available)
    limit, used = _memory_limit(CGROUP), _memory_used(CGROUP)
    return available if limit is None or used is None else max(0, min(available, limit - used))


def cpu_quota(cgroup: Path) -> float | None:
    """CPUs that the control group grants (versions 2 and 1), or ``None`` where it sets no bound."""
    parts = (_read(cgroup / "cpu.max") or "").split()
    if not parts:
        parts = [_read(cgroup / "cpu" / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")]
    try:
        quota, period = (int(part) for part in parts)
    except ValueError:  # "max", or no control group
        return None
    return quota / period if quota > 0 and period > 0 else None


def _memory_limit(cgroup: Path) -> int | None:
    text = _read(cgroup / "memory.max") or _read(cgroup / "memory" / "memory.limit_in_bytes") or ""
    return int(text) if text.isdigit() and int(text) < CGROUP_V1_UNLIMITED else None


def _memory_used(cgroup: Path) -> int | None:
    """What the group holds, less the file cache that the kernel gives back on demand."""
    for folder, usage in ((cgroup, "memory.current"), (cgroup / "memory", "memory.usage_in_bytes")):
        text = _read(folder / usage)
        if text is not None and text.isdigit():
            pairs = (line.split() for line in (_read(folder / "memory.stat") or "").splitlines())
            stat = {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}
            return max(0, int(text) - stat.get("inactive_file", 0))
    return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _cpu_name() -> str:
    for line in (_read(CPUINFO) or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model") and value.strip():
            return value.strip()
    if sys.platform == "darwin":
        return _sysctl("-n", "machdep.cpu.brand_string").strip() or platform.machine()
    return platform.processor() or platform.machine()


def _sysctl(*arguments: str) -> str:
    try:
        done = subprocess.run(["sysctl", *arguments], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def _apple_instructions() -> frozenset[str]:
    found = {
        APPLE_FEATURES[key.rpartition(".")[2]]
        for key, _, value in (line.partition(":") for line in _sysctl("hw.optional").splitlines())
        if key.rpartition(".")[2] in APPLE_FEATURES and value.strip() == "1"
    }
    intel = _sysctl("-n", "machdep.cpu.features", "machdep.cpu.leaf7_features").lower().replace(".", "_")
    return frozenset(found | (set(intel.split()) & RELEVANT))


def _versions() -> Mapping[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # an optional library: its absence is the fact
    return found


def _gpus() -> tuple[str, ...]:
    """Names of the NVIDIA devices, empty without the library or a driver."""
    try:
        with warnings.catch_warnings():  # nvidia-ml-py is what we ask for; an old namesake may sit beside it
            warnings.simplefilter("ignore", FutureWarning)
            import pynvml  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        return ()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        names = [pynvml.nvmlDeviceGetName(handle) for handle in handles]
        return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)
    finally:
        pynvml.nvmlShutdown()
