"""Indexes of weights: which files are read, and that no name in one leads anywhere else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hasten.models.inspect import inspect_checkpoint
from hasten.models.load import load_checkpoint
from hasten.models.reshape import open_model
from hasten.models.shards import INDEX, ONE_FILE, weight_files
from hasten.records import InputError, ModelRef
from hasten.tasks import get_task

TASK = "text-classification"
NAMES = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def parts(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A BERT classifier in two files."""
    folder = Path(shutil.copytree(checkpoint("bert"), tmp_path / "parts"))
    stored = load_file(folder / ONE_FILE)
    (folder / ONE_FILE).unlink()
    where = {key: NAMES[number % 2] for number, key in enumerate(sorted(stored))}
    for name in NAMES:
        own = {key: stored[key] for key in stored if where[key] == name}
        save_file(own, folder / name, metadata={"format": "pt"})
    write_index(folder, where)
    return folder


def write_index(folder: Path, where: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))


def renamed(folder: Path, first: str) -> None:
    """Every weight of the first file is said to be in another."""
    where = json.loads((folder / INDEX).read_text())["weight_map"]
    write_index(folder, {key: first if name == NAMES[0] else name for key, name in where.items()})


def loaded(folder: Path) -> Any:
    return load_checkpoint(ModelRef(str(folder)), task=get_task(TASK)).model


def test_parts_are_one_model(parts: Path, checkpoint: Callable[[str], Path]) -> None:
    assert weight_files(parts) == tuple(parts / name for name in NAMES)
    whole = loaded(checkpoint("bert")).state_dict()
    assert all(torch.equal(weight, whole[key]) for key, weight in loaded(parts).state_dict().items())


def test_left_over_files_are_not_the_checkpoint(parts: Path) -> None:
    before = inspect_checkpoint(ModelRef(str(parts)), task=get_task(TASK))
    known = before.source_hash()
    shutil.copyfile(parts / NAMES[0], parts / "model-00003-of-00003.safetensors")
    after = inspect_checkpoint(ModelRef(str(parts)), task=get_task(TASK))
    assert after.weights == before.weights
    assert after.source_hash() == known
    (parts / INDEX).write_text((parts / INDEX).read_text() + "\n")
    assert inspect_checkpoint(ModelRef(str(parts)), task=get_task(TASK)).source_hash() != known


@pytest.mark.parametrize("kind", ["above", "absolute", "folder", "pickle", "no name"])
def test_names_that_lead_elsewhere_are_refused(kind: str, parts: Path, tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    for place in (tmp_path / "other.safetensors", parts / "sub" / "other.safetensors", parts / "evil.bin"):
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(parts / NAMES[0], place)  # what transformers would read there is whole
    names: dict[str, Any] = {
        "above": "../other.safetensors", "absolute": str(tmp_path / "other.safetensors"),
        "folder": "sub/other.safetensors", "pickle": "evil.bin", "no name": 3,
    }  # fmt: skip
    renamed(parts, names[kind])
    with pytest.raises(InputError, match="as a file of weights"):
        inspect_checkpoint(ModelRef(str(parts)), task=get_task(TASK))
    from transformers import BertForSequenceClassification

    with pytest.raises(InputError, match="as a file of weights"):  # whoever opens a folder, as a bundle's, asks too
        open_model(BertForSequenceClassification, parts, attention="sdpa", dtype=torch.float32)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {}}', "[" * 100_000])
def test_indexes_that_are_none(content: str, parts: Path) -> None:
    (parts / INDEX).write_text(content)
    with pytest.raises(InputError, match=r"index\.json"):
        weight_files(parts)


def test_a_part_that_is_missing_is_named(parts: Path) -> None:
    (parts / NAMES[1]).unlink()
    with pytest.raises(InputError, match=NAMES[1]):
        inspect_checkpoint(ModelRef(str(parts)), task=get_task(TASK))


def test_one_file_goes_before_an_index(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint("bert"), tmp_path / "copy"))
    write_index(folder, {"a": "../elsewhere.safetensors"})  # transformers does not open it either
    assert weight_files(folder) == (folder / ONE_FILE,)
    loaded(folder)


def test_other_ways_to_name_weights_are_none(parts: Path) -> None:
    config = json.loads((parts / "config.json").read_text())
    (parts / "hasten.safetensors").write_bytes(b"not looked at without its mark")
    assert [path.name for path in inspect_checkpoint(ModelRef(str(parts)), task=None).weights] == [*NAMES]
    (parts / "config.json").write_text(json.dumps({**config, "transformers_weights": "other.safetensors.index.json"}))
    with pytest.raises(InputError, match=r"other\.safetensors\.index\.json"):
        inspect_checkpoint(ModelRef(str(parts)), task=get_task(TASK))


def test_a_config_that_is_too_deep(parts: Path) -> None:
    (parts / "config.json").write_text('{"a":' * 100_000)
    with pytest.raises(InputError, match=r"config\.json"):
        inspect_checkpoint(ModelRef(str(parts)), task=get_task(TASK))
