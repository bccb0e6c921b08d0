"""The artifact: written atomically offline, opened and verified online."""

from __future__ import annotations

from hasten.bundle.load import Model, load

__all__ = ["Model", "load"]
