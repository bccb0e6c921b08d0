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
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from hasten.measure.cgroup import OWN, ControlGroups, read
from hasten.records import Host

CPUINFO = Path("/proc/cpuinfo")
VMSTAT = Path("/proc/vmstat")
X86 = ("sse4_1", "sse4_2", "avx", "avx2", "f16c", "fma", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16")
X86_512 = ("avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16")
ARM = ("neon", "dotprod", "fp16", "i8mm", "bf16", "sve", "sve2")
RELEVANT = frozenset((*X86, *X86_512, *ARM))
# One name for one thing, whoever reports it: Linux on Arm, or macOS on either processor.
SYNONYMS = {
    "asimd": "neon",
    "advsimd": "neon",
    "asimddp": "dotprod",
    "feat_dotprod": "dotprod",
    "asimdhp": "fp16",
    "feat_fp16": "fp16",
    "feat_i8mm": "i8mm",
    "feat_bf16": "bf16",
    "avx1_0": "avx",
    "avx512vnni": "avx512_vnni",
}
LIBRARIES = (
    "numpy",
    "tokenizers",
    "torch",
    "transformers",
    "onnxruntime",
    "openvino",
    "executorch",
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
    """The vector and matrix instruction sets that matter to the runtimes, by one name each (see SYNONYMS)."""
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
            return _relevant(value.split())
    return frozenset()


def usable_cores(groups: ControlGroups = OWN) -> tuple[int, ...]:
    """Core numbers this process may run on, no more of them than the container's CPU quota allows."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    quota = groups.cpu_quota()
    return tuple(cores if quota is None else cores[: max(1, math.floor(quota))])


def total_memory_bytes(groups: ControlGroups = OWN) -> int:
    """Physical memory, or the container's limit where that is lower."""
    import psutil

    total = int(psutil.virtual_memory().total)
    limit = groups.memory_limit_bytes()
    return total if limit is None else min(total, limit)


def available_memory_bytes(groups: ControlGroups = OWN) -> int:
    """Memory that can be taken without swapping or meeting the container's limit."""
    import psutil

    available = int(psutil.virtual_memory().available)
    left = groups.memory_left_bytes()
    return available if left is None else min(available, left)


def busy_host() -> tuple[str, ...]:
    """A warning when others keep more than half of this machine's cores busy; ask before starting own work."""
    if not hasattr(os, "getloadavg"):
        return ()
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load <= cores / 2:
        return ()
    return (f"the machine is busy (load {load:.1f} on {cores} cores): times will be long and intervals wide",)


def oom_kills() -> int | None:
    """How often this kernel killed a process for want of memory since boot; ``None``: it does not say."""
    for line in (read(VMSTAT) or "").splitlines():
        name, _, count = line.partition(" ")
        if name == "oom_kill":
            return int(count)
    return None


def _cpu_name() -> str:
    for line in (read(CPUINFO) or "").splitlines():
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
    switches = (line.partition(":") for line in _sysctl("hw.optional").splitlines())
    on = [key.rpartition(".")[2] for key, _, value in switches if value.strip() == "1"]
    intel = _sysctl("-n", "machdep.cpu.features", "machdep.cpu.leaf7_features").replace(".", "_")
    return _relevant([*on, *intel.split()])


def _relevant(names: Iterable[str]) -> frozenset[str]:
    lowered = (name.lower() for name in names)
    return frozenset(SYNONYMS.get(name, name) for name in lowered) & RELEVANT


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
            import pynvml
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
