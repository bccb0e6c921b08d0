"""How long does ``hasten --help`` take, and does ``import hasten`` load torch? (<= 0.3 s; no.)"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from common import write

RUNS = 20


def main() -> None:
    program = Path(sys.executable).parent / "hasten"
    times = []
    for _ in range(RUNS):
        started = time.perf_counter()
        subprocess.run([program, "--help"], capture_output=True, check=True)
        times.append(time.perf_counter() - started)
    probe = "import sys, hasten; print('torch' in sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout.strip()
    write(
        "startup",
        "hasten --help in <= 0.3 s; import hasten loads no torch",
        {"help_s": {"median": statistics.median(times), "max": max(times), "n": RUNS}, "import_loads_torch": loaded},
    )


if __name__ == "__main__":
    main()
