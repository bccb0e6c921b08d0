"""OpenVINO's compiler, kept away from the caller's signals.

While it compiles, OpenVINO's CPU plugin gives the calling thread another stack for signal handlers, and takes it away
when the model is freed. Where models are freed in another order than they were compiled, the thread is left with a
stack that is no longer there, and the next signal (Ctrl-C, an alarm) ends the process with a segmentation fault.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


def compiled_apart(path: Path, settings: Mapping[str, Any]) -> Any:
    """The model for the CPU, compiled by a thread of its own, whose signal stack nobody misses."""
    import openvino

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="openvino-compile") as own:
        return own.submit(openvino.Core().compile_model, path, "CPU", dict(settings)).result()
