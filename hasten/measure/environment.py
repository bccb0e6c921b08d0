"""The environment variables of a worker process.

Takes a thread count, gives a whole environment. Knows the names that native libraries listen to, not what
will run: a variable nobody reads costs nothing.
"""

from __future__ import annotations

import os
import sys

POOLS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
# Would move our threads off the cores they were given, or keep idle ones spinning beside a neighbour.
REMOVED = ("OMP_WAIT_POLICY", "GOMP_CPU_AFFINITY", "KMP_AFFINITY", "OMP_PLACES", "OMP_PROC_BIND")


def child_environment(threads: int) -> dict[str, str]:
    """This process's environment with bounded thread pools that sleep when idle, and quiet libraries."""
    entries = [os.path.abspath(entry) for entry in sys.path]
    return {
        **{name: value for name, value in os.environ.items() if name not in REMOVED},
        **dict.fromkeys(POOLS, str(threads)),
        # libgomp's own default: about a millisecond of spinning, then sleep. Less (2,000 was tried) makes
        # PyTorch 30 % slower, which would flatter every other runtime; the untimed call that begins each
        # side's turn outlasts it.
        "GOMP_SPINCOUNT": "300000",
        "KMP_BLOCKTIME": "1",  # milliseconds
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(entries)),  # what the parent can import, the child can
    }
