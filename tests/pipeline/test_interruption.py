"""What an interrupted run leaves for the next sitting."""

from __future__ import annotations

from pathlib import Path

import pytest

from hasten.pipeline.request import Request, make_request
from hasten.pipeline.workspace import open_workspace
from hasten.records import Columns


def asked(out: Path) -> Request:
    return make_request("m", task="text-classification", data="d.csv", out=out, columns=Columns(), budget="", time="9m")


@pytest.mark.parametrize("interrupted", [True, False])
def test_half_trained_weights_stay_after_an_interruption_alone(interrupted: bool, tmp_path: Path) -> None:
    request = asked(tmp_path / "out")
    passes = request.out / "work" / "passes"
    files = {name: passes / name for name in ("aaa-0/model/config.json", "bbb-0/state/training.safetensors")}
    candidate = request.out / "work" / "full" / "c" / "model.onnx"
    with open_workspace(request, header={}) as space:
        for path in (*files.values(), candidate):
            path.parent.mkdir(parents=True)
            path.write_bytes(b"x")
        space.trained.add("aaa")
        if interrupted:
            space.keep_all_passes()
    assert files["aaa-0/model/config.json"].is_file(), "the weights of the pick"
    assert files["bbb-0/state/training.safetensors"].is_file() == interrupted
    assert not candidate.exists()
    with open_workspace(request, header={}):
        assert files["bbb-0/state/training.safetensors"].is_file() == interrupted
