"""Builds the native library when hasten is installed; without a compiler the rest is installed all the same.

Everything else about the package stands in pyproject.toml.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent


def _native() -> ModuleType:
    """`hasten.native.build` by its file: what hasten imports need not be installed yet."""
    spec = importlib.util.spec_from_file_location("hasten_native_build", HERE / "hasten" / "native" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _has_compiler() -> bool:
    native = _native()
    try:
        native.compiler()
    except native.BuildError:
        return False
    return True


class BuildWithLibrary(build_py):
    """Puts the library beside the sources of its room: in the tree for an editable install, else in the wheel."""

    def run(self) -> None:
        super().run()
        native = _native()
        target = native.LIBRARY
        if not self.editable_mode:
            target = Path(self.build_lib) / target.relative_to(HERE)
        try:
            built = native.build(target)
        except (native.BuildError, OSError) as error:
            print(f"hasten without its native runtime: {error}", file=sys.stderr)
            return
        for name, words in built.skipped.items():
            print(f"native kernels without {name}: {words}", file=sys.stderr)


class PlatformDistribution(Distribution):
    """With a compiled library a wheel is for one platform."""

    def has_ext_modules(self) -> bool:
        return _has_compiler()


class AnyPython(bdist_wheel):
    """The library knows no Python: a wheel is for every version."""

    def get_tag(self) -> tuple[str, str, str]:
        tag: tuple[str, str, str] = super().get_tag()
        return ("py3", "none", tag[2])


COMMANDS: dict[str, Any] = {"build_py": BuildWithLibrary, "bdist_wheel": AnyPython}
setup(cmdclass=COMMANDS, distclass=PlatformDistribution)
