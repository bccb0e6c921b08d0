"""Random programs, batches and broken words; the slow tests do it with a library that finds faults of memory, of
arithmetic and of threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import native_fuzz
import numpy as np
import pytest
from native_here import native_only

from hasten.native import library
from hasten.native.build import build, compiler

pytestmark = native_only
HERE = Path(__file__).parent


@pytest.mark.parametrize("seed", range(6))
def test_random_programs(seed: int) -> None:
    random = np.random.default_rng(1000 + seed)
    native_fuzz.encoder_once(random)
    native_fuzz.decoder_once(random)
    for _ in range(50):
        native_fuzz.broken_once(random)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "runtime"), [("address,undefined", "libasan.so"), ("thread", "libtsan.so")])
def test_nothing_undefined(kind: str, runtime: str, tmp_path: Path) -> None:
    """A process of its own with the fault finder's runtime before all else."""
    # The runtime looks for what throws as soon as it is loaded.
    found = [_file_of(name) for name in (runtime, "libstdc++.so.6")]
    if not all(Path(name).is_file() for name in found):
        pytest.skip(f"the compiler comes without {runtime}")
    best = library().isas[0]
    built = build(tmp_path / "checked.so", sanitize=kind, only={best, "avx2", "portable"} & set(library().isas))
    own = {
        "LD_PRELOAD": " ".join(found), "HASTEN_NATIVE_LIBRARY": str(built.library), "ASAN_OPTIONS": "detect_leaks=0",
        "TSAN_OPTIONS": "halt_on_error=1", "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])]),
        "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(HERE / "native_fuzz.py"), "0", "12"], env={**os.environ, **own}, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert "12 rounds" in done.stdout


def _file_of(name: str) -> str:
    return subprocess.run([compiler(), f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
