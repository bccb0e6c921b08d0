"""The runtimes by name, and how a recipe is read back.

To add one: a module beside this file and a line in :data:`RUNTIMES`. Modules load
their libraries only when used.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, cast

from hasten.records import InputError, Recipe, config_from_dict
from hasten.runtimes.runtime import Runtime

# name -> (module, its config class); the name is the config's ``kind``.
RUNTIMES: Mapping[str, tuple[str, str]] = {
    "torch": ("hasten.runtimes.torch", "TorchConfig"),
    "onnxruntime": ("hasten.runtimes.onnxruntime", "OnnxRuntimeConfig"),
    "openvino": ("hasten.runtimes.openvino", "OpenVinoConfig"),
    "native": ("hasten.runtimes.native", "NativeConfig"),
    "executorch": ("hasten.runtimes.executorch", "ExecuTorchConfig"),
}
# Tried only where --runtimes names them: what they make is meant for another machine than this one.
ON_REQUEST = frozenset({"executorch"})


def get_runtime(name: str) -> Runtime:
    """The runtime's module. Raises InputError for an unknown name."""
    if name not in RUNTIMES:
        raise InputError(
            f"unknown runtime {name!r}", expected=f"one of {', '.join(RUNTIMES)}", remedy="correct --runtimes"
        )
    return cast("Runtime", import_module(RUNTIMES[name][0]))


def configs() -> dict[str, type]:
    """Kind -> config dataclass of every runtime."""
    return {name: getattr(import_module(module), config) for name, (module, config) in RUNTIMES.items()}


def read_recipe(data: Mapping[str, Any]) -> Recipe:
    """A recipe from its JSON form. Raises InputError for unknown parts or settings."""
    from hasten.passes import PASSES
    from hasten.passes import configs as pass_configs

    kinds = [str(p.get("kind")) for p in data["passes"]]
    table = pass_configs(kinds if PASSES.keys() >= set(kinds) else None)  # all of them, to say which there are
    passes = tuple(config_from_dict(p, table) for p in data["passes"])
    return Recipe(passes=passes, runtime=config_from_dict(data["runtime"], configs()))
