"""A training's file: read again as it was written, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from hasten.passes.training_state import DamagedState, identity, read_state, write_state

TENSORS = {
    "now/a": torch.arange(12.0).view(3, 4),
    "step/a": torch.tensor(3.0),
    "now/b": torch.ones(5, dtype=torch.bfloat16),
}
FACTS = {"key": "k", "standing": "{}"}


def flipped(content: bytes) -> bytes:
    changed = bytearray(content)
    changed[-7] ^= 0x40
    return bytes(changed)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "training.safetensors"
    assert read_state(path, key="k") is None
    write_state(path, TENSORS, facts=FACTS)
    found = read_state(path, key="k")
    assert found is not None
    facts, tensors = found
    assert {name: facts[name] for name in FACTS} == FACTS
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert read_state(path, key="another") is None
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "damage",
    [flipped, lambda content: content[: len(content) // 2], lambda _: b"", lambda content: bytes(len(content))],
    ids=["a bit", "half of it", "empty", "zeros"],
)
def test_damage_is_found(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "training.safetensors"
    write_state(path, TENSORS, facts=FACTS)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DamagedState):
        read_state(path, key="k")


def test_a_full_disk_leaves_the_last_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "training.safetensors"
    write_state(path, TENSORS, facts=FACTS)
    before = path.read_bytes()

    def halfway(_: object, part: Path, **__: object) -> None:
        part.write_bytes(before[:9])
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", halfway)
    with pytest.raises(SafetensorError):
        write_state(path, {"now/a": torch.ones(99, 99)}, facts=FACTS)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_all_that_matters_to_a_training_is_in_its_identity() -> None:
    frozen = nn.BatchNorm1d(2).requires_grad_(False)
    rows = [{"input_ids": np.arange(4).reshape(1, 4)}, {"input_ids": np.arange(3).reshape(1, 3)}]
    targets = [np.asarray(0), np.asarray(1)]

    def made(settings: str = "s", **changed: Any) -> str:
        given: dict[str, Any] = {"modules": (frozen, None), "rows": rows, "targets": targets, **changed}
        return identity(settings, **given)

    whole = made()
    assert made() == whole
    other = nn.BatchNorm1d(2)
    other.running_mean = torch.ones(2)
    different = [
        made("t"), made(rows=rows[:1]), made(rows=rows[::-1]), made(targets=targets[::-1]), made(targets=()),
        made(modules=(frozen, nn.Linear(1, 1))), made(modules=(other, None)),
    ]  # fmt: skip
    assert whole not in different
    assert len(set(different)) == len(different)
