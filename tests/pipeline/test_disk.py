"""A full disk ends a run with what to do, and is no candidate's fault."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors import SafetensorError

from hasten.errors import DiskFull
from hasten.ledger import read_rows
from hasten.pipeline import disk
from hasten.pipeline.disk import found_no_room, watched_disk
from hasten.pipeline.jobs import build_artifact
from hasten.pipeline.request import make_request
from hasten.pipeline.trials import TrialRunner
from hasten.pipeline.workspace import check_disk, open_workspace
from hasten.records import Columns, InputError, ModelRef, Recipe, Rejected
from hasten.runtimes.torch import TorchConfig

PLENTY = 1 << 40


def no_room(path: str = "/data/model.onnx") -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def wrapped(error: Exception) -> Rejected:
    """What an exporter makes of it."""
    try:
        raise Rejected("export", "something went wrong") from error
    except Rejected as made:
        return made


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (no_room(), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (SafetensorError("I/O error: No space left on device (os error 28)"), True),
        (wrapped(no_room()), True),
        (wrapped(RuntimeError("opset 17 has no such operator")), False),
        (PermissionError(errno.EACCES, "Permission denied"), False),
        (InputError("a cat", expected="a dog", remedy="get one"), False),
        (KeyError("layer.7"), False),
    ],
)
@pytest.mark.parametrize("free_bytes", [PLENTY, 0])
def test_what_is_the_disks_fault(
    error: Exception, full: bool, free_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: SimpleNamespace(free=free_bytes))
    assert found_no_room(error) == full
    says_nothing = not isinstance(error, (OSError, InputError))
    expected: type[Exception] = DiskFull if full or (says_nothing and not free_bytes) else type(error)
    with pytest.raises(expected) as caught, watched_disk(tmp_path):
        raise error
    assert isinstance(caught.value, DiskFull) == (expected is DiskFull)


@pytest.mark.parametrize(("free_bytes", "full"), [(5_000_000, True), (PLENTY, False)])
def test_a_stream_that_failed_is_the_disks_where_little_is_free(
    free_bytes: int, full: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: SimpleNamespace(free=free_bytes))
    with pytest.raises(DiskFull if full else Rejected), watched_disk(tmp_path):
        raise wrapped(RuntimeError("basic_ios::clear: iostream error"))


def test_it_says_where_how_much_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: SimpleNamespace(free=3_000_000))
    (tmp_path / "there").write_bytes(bytes(1_000_000))
    with pytest.raises(DiskFull) as caught, watched_disk(tmp_path, needed=8_000_000), watched_disk(tmp_path):
        raise no_room(str(tmp_path / "x" / "model.onnx"))
    again = pickle.loads(pickle.dumps(caught.value))  # it comes from another process
    assert isinstance(again, DiskFull)
    assert again.exit_code == 74
    assert f"3 MB free where {tmp_path} is" in again.got
    assert "No space left" in again.got
    assert again.expected == "about 7 MB for the rest"
    assert "the same command" in again.remedy


def test_a_build_without_room_is_no_rejection(
    tiny: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(**changes: Any) -> Any:
        ref, recipe = ModelRef(str(tiny[0])), Recipe(passes=(), runtime=TorchConfig()).to_dict()
        given: dict[str, Any] = {"calibration": [], "folder": tmp_path / "full", "cache": tmp_path / "cache", **changes}
        return build_artifact(ref=ref, task="text-classification", recipe=recipe, **given)

    def fails(*_: object, **__: object) -> None:
        raise no_room()

    monkeypatch.setattr("hasten.runtimes.torch.export", fails)
    with pytest.raises(DiskFull, match="No space left"):
        build()
    monkeypatch.setattr(Path, "mkdir", fails)
    with pytest.raises(DiskFull, match="No space left"):
        build()


def test_no_trial_is_made_of_it() -> None:
    runner = TrialRunner.__new__(TrialRunner)

    def fails(_: Recipe) -> None:
        raise DiskFull("the disk is full", expected="room", remedy="free some")

    runner._preflight = fails  # type: ignore[assignment, method-assign]
    with pytest.raises(DiskFull):
        runner.run(Recipe(passes=(), runtime=TorchConfig()), "preflight")


def test_the_run_ends_and_can_go_on(tmp_path: Path) -> None:
    request = make_request(
        "m", task="text-classification", data="d.csv", out=tmp_path / "out", columns=Columns(), budget="", time="9m"
    )
    state = tmp_path / "out" / "work" / "passes" / "abc-def" / "state" / "training.safetensors"
    half = tmp_path / "out" / "work" / "cache" / "layersall" / "fp32.onnx"

    def sitting() -> None:
        with open_workspace(request, header={}):
            for path in (state, half):
                path.parent.mkdir(parents=True)
                path.write_bytes(b"x")
            raise no_room()

    with pytest.raises(DiskFull, match="same command"):
        sitting()
    assert read_rows(request.out / "trials.jsonl").trials() == ()
    with open_workspace(request, header={}):
        assert state.is_file(), "a training goes on from here"
        assert not half.exists(), "it may be half of an export"


def test_what_an_earlier_sitting_wrote_is_not_needed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: SimpleNamespace(free=4_000_000))
    with pytest.raises(DiskFull, match="about 6 MB"):
        check_disk(tmp_path / "out", weights_bytes=1_000_000, trains=False)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "weights").write_bytes(bytes(2_000_001))
    check_disk(tmp_path / "out", weights_bytes=1_000_000, trains=False)
