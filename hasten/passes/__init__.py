"""The techniques that change a model: one file each, ``(model, config, calibration) -> model``.

To add one: a file beside this one with a frozen config and a function, and a line in
:data:`PASSES`. Techniques that only change numbers inside a runtime's own file format
(int8 graphs) live with that runtime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from hasten.records import Config

# kind -> (module, config class, function)
PASSES: Mapping[str, tuple[str, str, str]] = {}


def configs() -> dict[str, type]:
    """Kind -> config dataclass of every pass."""
    return {kind: getattr(import_module(module), config) for kind, (module, config, _) in PASSES.items()}


def run_pass(model: Any, config: Config, calibration: Sequence[Any], *, adapter: Any) -> Any:
    """Apply one pass to the task's wrapper and return the new one."""
    module, _, function = PASSES[config.kind]
    return getattr(import_module(module), function)(model, config, calibration, adapter=adapter)
