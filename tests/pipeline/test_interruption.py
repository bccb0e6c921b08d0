"""What an interrupted run leaves for the next sitting."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hasten.pipeline import run as run_module
from hasten.pipeline.progress import Silent
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


@pytest.mark.parametrize(("wishes", "ends"), [(0, [False]), (1, [False, True]), (2, [False, True])])
def test_one_wish_in_the_final_test_ends_it_with_a_verdict(
    wishes: int, ends: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one ends at once."""
    begun: list[bool] = []

    class Ending:
        def __init__(self, *given: Any) -> None:
            begun.append(given[4])

        def run(self) -> None:
            if len(begun) <= wishes:
                raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "Ending", Ending)
    for name, value in (("_search", None), ("_verdict_stands", False), ("_publisher", SimpleNamespace(host=None))):
        monkeypatch.setattr(run_module._Loop, name, lambda _self, value=value: value)
    rows = SimpleNamespace(elapsed_s=lambda: 0.0)
    space: Any = SimpleNamespace(ledger=SimpleNamespace(trials=tuple, rows=rows))
    runner: Any = SimpleNamespace(full=object(), builds=SimpleNamespace(), close=lambda: None)
    loop = run_module._Loop(None, None, None, space, runner, (), Silent(), 0.0)  # type: ignore[arg-type]
    if wishes < 2:
        loop.run()
    else:
        with pytest.raises(KeyboardInterrupt):
            loop.run()
    assert begun == ends
