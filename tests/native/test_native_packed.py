"""Packed weights on disk: the same answers, and nothing that lies there is believed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoder_cases import batch_of, exported, writer
from native_here import native_only
from safetensors.numpy import load_file, save_file

from hasten.native import packed
from hasten.native.engine import Engine
from hasten.native.shared_library import ISA_VARIABLE, library
from hasten.records import Rejected
from hasten.runtimes import get_runtime
from hasten.runtimes.native import MODEL, NativeConfig

pytestmark = native_only
BATCH = batch_of((9, 4), left=True)
INT4 = NativeConfig(precision="int4")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "model"
    exported(writer("gemma3_text"), folder, INT4)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache where every program is worth keeping."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(packed, "WORTH_BYTES", 0)
    return packed.packed_folder()


def said(folder: Path, **settings: Any) -> Any:
    session = get_runtime("native").open(folder, INT4, **{"threads": 1, "cores": (), **settings})
    found = session.run(BATCH)
    session.close()
    return found


def packing(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each engine that is made, whether it had to pack."""
    made: list[bool] = []
    plain = Engine.__init__

    def counted(self: Engine, *args: Any, **settings: Any) -> None:
        plain(self, *args, **settings)
        made.append(settings.get("packed") is None)

    monkeypatch.setattr(Engine, "__init__", counted)
    return made


def test_what_is_packed_once_is_read_afterwards(model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = packing(monkeypatch)
    first = said(model)
    (kept,) = cache.iterdir()
    before = kept.read_bytes()
    for threads in (1, 3):
        assert np.array_equal(said(model, threads=threads), first)
    assert made == [True, False, False]
    assert kept.read_bytes() == before


def test_another_content_and_another_instruction_set_have_files_of_their_own(
    model: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said(model)
    other = tmp_path / "other"
    exported(writer("gemma3_text", seed=1), other, INT4)
    assert not np.array_equal(said(other), said(model))
    assert len(list(cache.iterdir())) == 2
    monkeypatch.setenv(ISA_VARIABLE, library().isas[-1])
    said(model)
    assert len(list(cache.iterdir())) == 2 + (len(library().isas) > 1)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "a header alone": lambda b: b[:4096],
    "shorter": lambda b: b[:-64],
    "longer": lambda b: b + bytes(64),
    "other numbers": lambda b: b[:5000] + bytes([b[5000] ^ 1]) + b[5001:],
    "another key": lambda b: b[:9] + bytes([b[9] ^ 1]) + b[10:],
    "no magic": lambda b: b"X" + b[1:],
    "a size of its own": lambda b: b[:40] + (2**62).to_bytes(8, "little") + b[48:],
    "a size below 0": lambda b: b[:40] + (-64).to_bytes(8, "little", signed=True) + b[48:],
    "another checksum": lambda b: b[:48] + bytes([b[48] ^ 1]) + b[49:],
    "half of its bytes, and so it says": lambda b: b[:40] + (64).to_bytes(8, "little") + b[48 : 4096 + 64],
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_file_is_packed_again(what: str, model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = said(model)
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(DAMAGE[what](whole))
    made = packing(monkeypatch)
    assert np.array_equal(said(model), wanted)
    assert made == [True]
    assert kept.read_bytes() == whole


def test_where_nothing_can_be_kept_everything_else_works(
    model: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = said(model)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert np.array_equal(said(model), wanted)
    assert len(list(cache.iterdir())) == 1


def test_what_was_used_longest_ago_goes(
    model: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said(model)
    (old,) = cache.iterdir()
    os.utime(old, (1, 1))
    monkeypatch.setattr(packed, "MOST_BYTES", old.stat().st_size + 100)
    exported(writer("gemma3_text", seed=1), tmp_path / "other", INT4)
    said(tmp_path / "other")
    (new,) = cache.iterdir()
    assert new != old


def test_what_somebody_who_was_killed_had_begun_is_cleared_away(model: Path, cache: Path) -> None:
    cache.mkdir(parents=True)
    abandoned, begun = cache / ".packing-old", cache / ".packing-new"
    for path in (abandoned, begun):
        path.write_bytes(bytes(100))
    os.utime(abandoned, (1, 1))
    said(model)
    assert not abandoned.exists()
    assert begun.exists()
    assert len(list(cache.glob("*.packed"))) == 1


def test_small_programs_are_not_kept(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    said(model)
    assert not packed.packed_folder().exists()


def test_arrays_are_those_that_were_saved(model: Path) -> None:
    found = packed.mapped(model / MODEL)
    wanted = load_file(model / MODEL)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)


HEADERS: dict[str, Any] = {
    "no table": [1],
    "no numbers": {"words": {"dtype": "I64", "shape": ["a"], "data_offsets": [0, 8]}},
    "no place": {"words": {"dtype": "I64", "shape": [1]}},
    "another type": {"words": {"dtype": "F8", "shape": [8], "data_offsets": [0, 8]}},
    "behind the end": {"words": {"dtype": "I64", "shape": [4], "data_offsets": [0, 32]}},
    "more than there is": {"words": {"dtype": "I64", "shape": [2**61], "data_offsets": [0, 8]}},
    "below 0": {"words": {"dtype": "I64", "shape": [-1, -1], "data_offsets": [0, 8]}},
    "backwards": {"words": {"dtype": "I64", "shape": [1], "data_offsets": [8, 0]}},
    "three places": {"words": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8, 8]}},
    "text": {"words": "all"},
}


@pytest.mark.parametrize("what", HEADERS)
def test_headers_that_lie_are_a_sentence(what: str, model: Path, tmp_path: Path) -> None:
    header = json.dumps(HEADERS[what]).encode()
    folder = tmp_path / "model"
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / MODEL).write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(Rejected, match=MODEL):
        get_runtime("native").open(folder, INT4, threads=1, cores=())


DEEP = (10**5).to_bytes(8, "little") + b"[" * 10**5


@pytest.mark.parametrize("raw", [b"", b"\xff" * 8, b"\xff" * 40, bytes(40), (3).to_bytes(8, "little") + b"{{{", DEEP])
def test_files_that_are_none_are_a_sentence(raw: bytes, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / MODEL).write_bytes(raw)
    with pytest.raises(Rejected, match=MODEL):
        get_runtime("native").open(folder, INT4, threads=1, cores=())


def test_a_file_of_words_alone_is_no_program(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    save_file({"words": load_file(model / MODEL)["words"]}, folder / MODEL)
    with pytest.raises(Rejected, match="arrays"):
        get_runtime("native").open(folder, INT4, threads=1, cores=())
