"""A folder that is filled holds everything or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from hasten.pipeline.staging import staged


def fill(folder: Path) -> None:
    (folder / "a.json").write_text("{}")
    (folder / "parts").mkdir()
    (folder / "parts" / "b.bin").write_bytes(b"1")


def fill_and_fail(folder: Path) -> None:
    fill(folder)
    raise OSError("full")


@pytest.mark.parametrize("there", [False, True])
def test_everything_arrives_at_the_end(tmp_path: Path, there: bool) -> None:
    wanted = tmp_path / "out"
    if there:
        wanted.mkdir()
    with staged(wanted) as staging:
        fill(staging)
        assert not (wanted / "a.json").exists()
    assert sorted(p.relative_to(wanted).as_posix() for p in wanted.rglob("*")) == ["a.json", "parts", "parts/b.bin"]
    assert list(tmp_path.iterdir()) == [wanted]


@pytest.mark.parametrize("there", [False, True])
def test_nothing_stays_of_what_failed(tmp_path: Path, there: bool) -> None:
    wanted = tmp_path / "out"
    if there:
        wanted.mkdir()
    with pytest.raises(OSError, match="full"), staged(wanted) as staging:
        fill_and_fail(staging)
    assert list(tmp_path.rglob("*")) == ([wanted] if there else [])


def test_what_was_moved_already_goes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, rename = tmp_path / "out", Path.rename
    wanted.mkdir()

    def once(self: Path, target: Path) -> Path:
        if self.name == "parts":
            raise OSError("gone")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", once)
    with pytest.raises(OSError, match="gone"), staged(wanted) as staging:
        fill(staging)
    assert list(wanted.iterdir()) == []
