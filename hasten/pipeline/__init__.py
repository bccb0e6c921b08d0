"""The offline loop; the only room that imports every offline stage."""

from __future__ import annotations

from hasten.pipeline.result import Result
from hasten.pipeline.run import optimize

__all__ = ["Result", "optimize"]
