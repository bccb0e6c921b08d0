"""A graph that is found in a cache is whole, whatever ended the process that wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.runtimes.openvino_files import save_whole

openvino = pytest.importorskip("openvino")


def doubling() -> Any:
    from openvino import opset13

    given = opset13.parameter([-1, 2], openvino.Type.f32)
    twice = opset13.multiply(given, opset13.constant(np.full((1, 2), 2.0, np.float32)))
    return openvino.Model([twice], [given], "doubling")


def test_both_files_are_there_and_nothing_else(tmp_path: Path) -> None:
    save_whole(doubling(), tmp_path / "model.xml")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    opened = openvino.Core().compile_model(tmp_path / "model.xml", "CPU")
    assert opened(np.ones((1, 2), np.float32))[0].tolist() == [[2.0, 2.0]]


def test_a_graph_that_was_not_finished_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(_model: Any, path: Path, **_: Any) -> None:
        path.write_text("<net")
        raise OSError("killed")

    monkeypatch.setattr(openvino, "save_model", half)
    with pytest.raises(OSError, match="killed"):
        save_whole(doubling(), tmp_path / "model.xml")
    assert not (tmp_path / "model.xml").exists()
