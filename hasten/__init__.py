"""hasten: the fastest Transformer that provably still passes, on your hardware.

Importing this package touches no accelerator and loads no torch: the public names
resolve on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "optimize": "hasten.pipeline",
    "Result": "hasten.pipeline",
    "bench": "hasten.pipeline.bench",
    "bench_streams": "hasten.pipeline.streams",
    "load": "hasten.bundle",
    "check": "hasten.pipeline.check",
    "evaluate": "hasten.pipeline.evaluate",
    "export": "hasten.pipeline.export",
    "size": "hasten.pipeline.size",
    "trim_vocabulary": "hasten.pipeline.trim",
    "workbench": "hasten.pipeline.workbench",
}

__all__ = [
    "Result",
    "__version__",
    "bench",
    "bench_streams",
    "check",
    "evaluate",
    "export",
    "load",
    "optimize",
    "size",
    "trim_vocabulary",
    "workbench",
]

if TYPE_CHECKING:
    from hasten.bundle import load
    from hasten.pipeline import Result, optimize
    from hasten.pipeline.bench import bench
    from hasten.pipeline.check import check
    from hasten.pipeline.evaluate import evaluate
    from hasten.pipeline.export import export
    from hasten.pipeline.size import size
    from hasten.pipeline.streams import bench_streams
    from hasten.pipeline.trim import trim_vocabulary
    from hasten.pipeline.workbench import workbench


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'hasten' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
