"""Converted checkpoints in the cache: whole or not there, and never taken from under those who use them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from safetensors import SafetensorError

from hasten.models.interchange import conversions
from hasten.records import InputError


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """A conversion of so many bytes, by a name of its own."""

    def made(name: str, size: int = 100) -> Path:
        source = tmp_path / name
        if not source.exists():
            source.write_text(name)
        return conversions.converted([source], make=lambda folder: fill(folder, size))

    return made


def fill(folder: Path, size: int) -> None:
    for name in ("x", "y"):
        (folder / name).write_bytes(b"x" * (size // 2))


def aged(*folders: Path) -> None:
    for age, folder in enumerate(folders):
        os.utime(folder, (1000.0 + age, 1000.0 + age))


def left() -> list[str]:
    found = (path for path in conversions.conversions_folder().iterdir() if path.is_dir())
    return sorted(path.name for path in found)


class Killed(BaseException):
    """What no handler catches."""


def test_half_deleted_is_not_there(make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    first = make("a")
    aged(first)
    monkeypatch.setattr(conversions, "_MOST_BYTES", 50)
    true = shutil.rmtree

    def half(path: Path, ignore_errors: bool = False) -> None:
        for found in sorted(Path(path).rglob("x")):
            found.unlink()
            raise Killed
        true(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", half)
    with pytest.raises(Killed):
        make("b")
    monkeypatch.setattr(shutil, "rmtree", true)
    assert not first.exists()  # nothing stands under its name that is not whole
    monkeypatch.setattr(conversions, "_MOST_BYTES", 10**9)
    assert sorted(path.name for path in make("a").iterdir()) == ["x", "y"]
    assert left() == [first.name]  # and the rest of it is gone


def test_a_folder_whose_lock_is_held_stays(make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = make("a"), make("b")
    aged(first, second)
    monkeypatch.setattr(conversions, "_MOST_BYTES", 150)
    with FileLock(first.parent / f".{first.name}.lock"):
        third = make("c")
    assert (first.exists(), second.exists(), third.exists()) == (True, False, True)


def test_a_folder_that_was_just_used_stays(make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    first = make("a")
    aged(first)
    monkeypatch.setattr(conversions, "_MOST_BYTES", 50)
    true = conversions._lock

    def used_meanwhile(root: Path, name: str, *, timeout_s: float = -1) -> object:
        if name == first.name:
            os.utime(first)
        return true(root, name, timeout_s=timeout_s)

    monkeypatch.setattr(conversions, "_lock", used_meanwhile)
    make("b")
    assert first.exists()


def test_folders_that_are_being_written_stay_and_abandoned_ones_go(make: Callable[..., Path]) -> None:
    root = make("a").parent
    for name in ("busy", "dead"):
        (root / f".making-{name}-12345678").mkdir()
        aged(root / f".making-{name}-12345678")
    with FileLock(root / ".busy.lock"):
        make("b")
        assert [name for name in left() if name.startswith(".")] == [".making-busy-12345678"]
    make("c")
    assert not [name for name in left() if name.startswith(".")]


def test_room_is_made_for_what_was_just_made(make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    first = make("a")
    aged(first)
    monkeypatch.setattr(conversions, "_MOST_BYTES", 150)  # room for the first, until the second is there
    second = make("b", 120)
    assert (first.exists(), second.exists()) == (False, True)
    third = make("c", 1000)  # larger than the bound, and still what was asked for
    assert third.exists()


def test_a_folder_that_goes_by_itself(make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    first = make("a")
    aged(first)
    monkeypatch.setattr(conversions, "_MOST_BYTES", 50)
    true = conversions._bytes

    def gone_meanwhile(folder: Path) -> int:
        size = true(folder)
        shutil.rmtree(first, ignore_errors=True)
        return size

    monkeypatch.setattr(conversions, "_bytes", gone_meanwhile)
    assert make("b").exists()
    assert conversions._bytes(first) == 0


def test_a_write_that_fails_says_so(tmp_path: Path) -> None:
    def full(_: Path) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    (tmp_path / "a").write_text("a")
    with pytest.raises(InputError, match="No space left"):
        conversions.converted([tmp_path / "a"], make=full)
    assert left() == []
