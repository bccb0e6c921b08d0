"""Passes called one by one on the user's own rows: the same splits as a run, honest scores, folders that open again."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hasten
from hasten.errors import DiskFull
from hasten.models.inspect import OWN_WEIGHTS
from hasten.passes import (
    FisherConfig,
    LayersConfig,
    MagnitudeConfig,
    drop_layers,
    prune_fisher,
    prune_magnitude,
)
from hasten.pipeline.workbench import Workbench
from hasten.records import InputError


@pytest.fixture(scope="module")
def bench(tiny: tuple[Path, Path]) -> Workbench:
    return hasten.workbench(tiny[0], task="text-classification", data=tiny[1], seed=3)


def test_a_pass_sees_calibration_rows_alone(bench: Workbench) -> None:
    prepared, given = bench.prepared, bench.calibration()
    assert len(given.rows) == len(prepared.calibration)
    seen = {row["input_ids"].tobytes() for row in given.rows}
    held = [row for part in (prepared.selection, prepared.test) for row in prepared.batches(part, batch=1)]
    assert not seen & {row["input_ids"].tobytes() for row in held}
    assert given.targets is not None
    assert given.validate is not None
    assert given.validate(bench.model()) == pytest.approx(bench.score(bench.model(), "selection").value)


def test_what_was_cut_unevenly_opens_again_with_the_same_score(bench: Workbench, tmp_path: Path) -> None:
    model = drop_layers(bench.model(), LayersConfig(count=2), bench.calibration())
    model = prune_fisher(model, FisherConfig(keep=0.6, round_to=8), bench.calibration())
    model = prune_magnitude(model, MagnitudeConfig(sparsity=0.8), bench.calibration())
    folder = bench.save(model, tmp_path / "small")
    rows = tmp_path / "rows.csv"
    held = bench.prepared.rows_of(bench.prepared.test)
    assert held.labels is not None
    lines = [f"{text},{label}" for text, label in zip(held.texts, held.labels, strict=True)]
    rows.write_text("\n".join(["text,label", *lines]))
    again = hasten.workbench(folder, task="text-classification", data=rows)
    ours = bench.prepared.batches(bench.prepared.test, batch=1)[0]
    import torch

    with torch.inference_mode():
        batch = {name: torch.from_numpy(array) for name, array in ours.items()}
        np.testing.assert_allclose(again.model()(**batch).numpy(), model(**batch).numpy(), atol=1e-5)
    whole = bench.save(bench.model(), tmp_path / "whole")
    assert (folder / OWN_WEIGHTS).stat().st_size < 0.8 * (whole / "model.safetensors").stat().st_size


def test_a_folder_that_holds_something_is_left_alone(bench: Workbench, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something"):
        bench.save(bench.model(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
def test_a_save_without_room_leaves_nothing(
    there: bool, bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def halfway(model: Any, folder: Path) -> None:
        model.config.save_pretrained(folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = tmp_path / "small"
    if there:
        folder.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("hasten.models.reshape.save_model", halfway)
        with pytest.raises(DiskFull, match="No space left"):
            bench.save(bench.model(), folder)
    assert [p.name for p in tmp_path.iterdir()] == (["small"] if there else [])
    assert folder.is_dir() == there
    assert not there or not any(folder.iterdir())
    saved = bench.save(bench.model(), folder)
    assert {"config.json", "tokenizer.json"} <= {p.name for p in saved.iterdir()}
    assert [p.name for p in tmp_path.iterdir()] == ["small"]


def test_bad_input_is_that_of_a_run(tiny: tuple[Path, Path]) -> None:
    with pytest.raises(InputError):
        hasten.workbench(tiny[0], task="text-classification", data="no-such.csv")
    with pytest.raises(InputError):
        hasten.workbench(tiny[0], task="text-clasification", data=tiny[1])
