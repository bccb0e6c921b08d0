"""A run is gone on with from what it began with: checkpoint, data and teachers by their content, not by their names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import save_tiny_classifier
from own_core import own_core
from safetensors.torch import load_file, save_file

import hasten
from hasten.ledger import read_rows
from hasten.passes.distillation import DistillConfig
from hasten.passes.layers import LayersConfig
from hasten.pipeline import run
from hasten.pipeline.sources import check_unchanged, hash_of_teachers
from hasten.records import InputError, Recipe
from hasten.runtimes.torch import TorchConfig

TASK = "text-classification"
BEGAN: dict[str, str | None] = {
    "source_hash": "a", "data_sha256": "b", "extra_sha256": None, "teachers_sha256": None,
}  # fmt: skip


def taught_by(*teachers: Path) -> Recipe:
    return Recipe((LayersConfig(count=1), DistillConfig(epochs=1, teachers=tuple(map(str, teachers)))), TorchConfig())


def moved(folder: Path) -> None:
    """Other weights of the same shapes."""
    path = folder / "model.safetensors"
    save_file({name: tensor * 0.9 for name, tensor in load_file(path).items()}, path, {"format": "pt"})


def test_teachers_are_what_lies_in_their_folders(tmp_path: Path) -> None:
    one, other = (save_tiny_classifier(tmp_path / name) for name in ("one", "other"))
    assert hash_of_teachers([Recipe((LayersConfig(count=1),), TorchConfig())], task=TASK) is None
    before = hash_of_teachers([taught_by(one)], task=TASK)
    assert before == hash_of_teachers([taught_by(one), taught_by(one)], task=TASK)
    assert before != hash_of_teachers([taught_by(one, other)], task=TASK)
    moved(one)
    assert hash_of_teachers([taught_by(one)], task=TASK) not in (None, before)


def test_what_cannot_teach_is_said_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such path"):
        hash_of_teachers([taught_by(tmp_path / "nowhere")], task=TASK)
    folder = save_tiny_classifier(tmp_path / "one")
    with pytest.raises(InputError, match="without the head of token-classification"):
        hash_of_teachers([taught_by(folder)], task="token-classification")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("source_hash", "the checkpoint"),
        ("data_sha256", "the data"),
        ("extra_sha256", "the extra data"),
        ("teachers_sha256", "a teacher's checkpoint"),
    ],
)
def test_each_of_them_is_held_against_the_beginning(name: str, what: str) -> None:
    check_unchanged(BEGAN, BEGAN, out=Path("out"))
    # A ledger of a run without teachers may be older than their entry.
    check_unchanged({k: v for k, v in BEGAN.items() if v is not None}, BEGAN, out=Path("out"))
    with pytest.raises(InputError, match=f"{what} changed since the run in out began"):
        check_unchanged(BEGAN, {**BEGAN, name: "another"}, out=Path("out"))


@pytest.mark.slow
def test_another_teacher_under_the_same_name_ends_the_run(
    tiny: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Begun(Exception):
        pass

    def begun(_: Any) -> None:
        raise Begun

    teacher, out = save_tiny_classifier(tmp_path / "teacher"), tmp_path / "out"
    monkeypatch.setattr(run._Loop, "run", begun)

    def go_on() -> None:
        hasten.optimize(
            tiny[0], task=TASK, data=tiny[1], time="100s", out=out, recipe=taught_by(teacher), cores=own_core(),
        )  # fmt: skip

    with pytest.raises(Begun):
        go_on()
    header = read_rows(out / "trials.jsonl").header
    assert header["teachers_sha256"] == hash_of_teachers([taught_by(teacher)], task=TASK)
    moved(teacher)
    with pytest.raises(InputError, match="a teacher's checkpoint changed"):
        go_on()
    assert read_rows(out / "trials.jsonl").header == json.loads(json.dumps(header))
