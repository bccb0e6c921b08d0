"""The library is built from its sources by whatever compiler there is, and says so where there is none."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from native_here import native_only

from hasten.errors import InputError
from hasten.native import build as building
from hasten.native import library, missing
from hasten.native.build import BuildError, build, instruction_sets
from hasten.native.shared_library import Library

ROOT = Path(__file__).parents[2]


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match=r"install g\+\+ or clang\+\+"):
        build(tmp_path / "x.so")


def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(BuildError):
        build(tmp_path / "x.so")
    assert not list(tmp_path.iterdir())


def test_no_library(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"python -m hasten\.native"):
        Library(tmp_path / "absent.so")
    other = tmp_path / "other.so"
    other.write_bytes(b"no library")
    with pytest.raises(InputError, match="does not load"):
        Library(other)


@native_only
def test_a_library_of_other_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    path = library().path
    monkeypatch.setattr("hasten.native.shared_library.stamp", lambda: "0123456789abcdef")
    with pytest.raises(InputError, match="build it again"):
        Library(path)


def test_where_there_is_a_compiler_there_is_the_library() -> None:
    """Tests that need it are skipped without it; this one is not."""
    if shutil.which("c++") or shutil.which("g++") or shutil.which("clang++"):
        assert missing() is None, "build it: python -m hasten.native"
    else:
        assert "compiler" in (missing() or "")


@native_only
def test_this_host() -> None:
    assert set(library().isas) <= set(instruction_sets())
    assert library().isas[-1] == "portable"


def test_sources_are_small_files_that_say_what_they_are() -> None:
    for path in building.SOURCES.iterdir():
        text = path.read_text()
        assert text.count("\n") <= 300, f"{path.name} has more than 300 lines"
        assert path.suffix == ".h" or text.startswith(("//", "#include")), path.name
        assert max(map(len, text.splitlines())) <= 120, f"{path.name} has a line of more than 120 characters"


@pytest.mark.slow
def test_warnings_are_errors(tmp_path: Path) -> None:
    built = build(tmp_path / "strict.so", strict=True, jobs=1)
    assert built.skipped == {}


@pytest.mark.slow
def test_installing_without_a_compiler(tmp_path: Path) -> None:
    """``setup.py`` goes through, and says what is missing."""
    done = subprocess.run(
        [sys.executable, "setup.py", "build", "--build-base", str(tmp_path / "build")],
        cwd=ROOT, env={"PATH": str(tmp_path), "HOME": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "without its native runtime" in done.stderr
    assert not list((tmp_path / "build").rglob("*.so"))
