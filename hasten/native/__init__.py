"""The native CPU runtime: C++ kernels and an executor for flat programs. Knows tensors, no transformers, no torch.

`program` describes what is run, `engine.Engine` runs it, `build` makes the shared library, `shared_library` loads it.
"""

from __future__ import annotations

from hasten.native.shared_library import library, missing

__all__ = ["library", "missing"]
