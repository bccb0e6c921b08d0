"""Makes the shared library: calls a C++17 compiler, one unit of kernels for each instruction set.

Takes the sources beside this file, gives one shared library that chooses among its kernels at run time. Knows
compilers' flags, not what is compiled. Needs nothing but a compiler: `setup.py` calls it when hasten is installed,
``python -m hasten.native`` later.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent / "src"
LIBRARY = Path(__file__).parent / ("hasten_native.dylib" if platform.system() == "Darwin" else "hasten_native.so")
COMPILERS = ("c++", "g++", "clang++")
# Products and sums are never fused behind our back, so every instruction set rounds alike.
_FLAGS = ("-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
          "-Wall", "-Wextra", "-pthread")  # fmt: skip
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
# GCC's own headers give undefined registers to instructions that ignore them, and GCC warns of it; clang has no such
# warning, nor one that it has not.
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512",
           "-Wno-unknown-warning-option", "-Wno-maybe-uninitialized", "-Wno-uninitialized")  # fmt: skip
_X86 = {
    "avx512_bf16": (*_AVX512, "-mavx512vnni", "-mavx512bf16"),
    "avx512_vnni": (*_AVX512, "-mavx512vnni"),
    "avx512": _AVX512,
    "avx_vnni": (*_AVX2, "-mavxvnni"),
    "avx2": _AVX2,
}
_PLAIN = ("-Wno-psabi",)  # nothing is called from outside: it matters to nobody how vectors are passed
_ARM = {"neon": (*_PLAIN, "-march=armv8.2-a+dotprod")}


class BuildError(RuntimeError):
    """There is no compiler, or it failed; the message holds its words."""


@dataclass(frozen=True)
class Built:
    """``skipped``: instruction sets whose kernels this compiler cannot make, and its words."""

    library: Path
    compiler: str
    skipped: dict[str, str]


def instruction_sets() -> dict[str, tuple[str, ...]]:
    """Flags of every unit of kernels for this machine's architecture."""
    machine = platform.machine().lower()
    sets = _X86 if machine in ("x86_64", "amd64") else _ARM if machine in ("aarch64", "arm64") else {}
    return {**sets, "portable": _PLAIN}


@functools.cache
def stamp() -> str:
    """Names the sources: a library of others is not loaded."""
    files = sorted(path for path in SOURCES.iterdir() if path.suffix in (".cpp", ".h"))
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def compiler() -> str:
    """The C++ compiler: ``$CXX``, else the first of c++, g++ and clang++. Raises BuildError."""
    named = os.environ.get("CXX")
    for name in (named,) if named else COMPILERS:
        if found := shutil.which(name):
            return found
    raise BuildError(f"no C++ compiler: looked for {named or ', '.join(COMPILERS)}; install g++ or clang++, or set CXX")


def build(
    library: Path = LIBRARY,
    *,
    sanitize: str = "",
    strict: bool = False,
    only: Collection[str] | None = None,
    jobs: int | None = None,
) -> Built:
    """Compiles and links. For tests: ``sanitize`` ("address,undefined" or "thread"), ``strict`` (warnings are errors),
    ``only`` some instruction sets. Raises BuildError."""
    command = compiler()
    flags = [*_FLAGS, f'-DHASTEN_STAMP="{stamp()}"']
    flags += [f"-fsanitize={sanitize}", "-fno-sanitize-recover=all", "-g", "-O1"] if sanitize else ["-O2", "-DNDEBUG"]
    flags += ["-Werror"] if strict else []
    sets = {name: own for name, own in instruction_sets().items() if only is None or name in only}
    common = sorted(path for path in SOURCES.glob("*.cpp") if path.name not in ("dispatch.cpp", "kernels.cpp"))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
        objects = Path(folder)
        units = {
            name: pool.submit(_compile, command, SOURCES / "kernels.cpp", objects / f"kernels_{name}.o",
                              [*flags, *own, f"-DHASTEN_ISA={name}", f"-DHASTEN_ISA_{name.upper()}"])
            for name, own in sets.items()
        }  # fmt: skip
        plain = [pool.submit(_compile, command, path, objects / f"{path.stem}.o", flags) for path in common]
        skipped = {name: words for name, unit in units.items() if (words := unit.result())}
        made = [name for name in sets if name not in skipped]
        if "portable" in skipped:
            raise BuildError(skipped["portable"])
        if words := next((words for unit in plain if (words := unit.result())), None):
            raise BuildError(words)
        has = [f"-DHASTEN_HAS_{name.upper()}" for name in made]
        if words := _compile(command, SOURCES / "dispatch.cpp", objects / "dispatch.o", [*flags, *has]):
            raise BuildError(words)
        _link(command, sorted(objects.glob("*.o")), library, sanitize=sanitize)
    return Built(library, command, skipped)


def _compile(command: str, source: Path, target: Path, flags: Sequence[str]) -> str | None:
    """None, or the compiler's words."""
    done = subprocess.run([command, *flags, "-c", str(source), "-o", str(target)], capture_output=True, text=True)
    return f"{source.name} ({' '.join(flags)}):\n{done.stderr[:4000]}" if done.returncode else None


def _link(command: str, objects: Sequence[Path], library: Path, *, sanitize: str) -> None:
    """Beside its place first: a process that has the old file open keeps it whole."""
    partial = library.with_suffix(f".{os.getpid()}.part")
    flags = ["-shared", "-pthread", *([f"-fsanitize={sanitize}"] if sanitize else [])]
    done = subprocess.run([command, *flags, *map(str, objects), "-o", str(partial)], capture_output=True, text=True)
    if done.returncode != 0:
        partial.unlink(missing_ok=True)
        raise BuildError(done.stderr[:4000])
    partial.replace(library)
