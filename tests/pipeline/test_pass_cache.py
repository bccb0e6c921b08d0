"""What passes made is taken again only if it is whole, and of this checkpoint and these rows."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save_rows, save_tiny_classifier

import hasten
from hasten.passes import DistillConfig, LayersConfig, MagnitudeConfig
from hasten.pipeline import compress
from hasten.pipeline.compress import compressed, passes_id
from hasten.pipeline.pass_cache import DAMAGED
from hasten.pipeline.workbench import Workbench
from hasten.records import Config

ONE: tuple[Config, ...] = (LayersConfig(count=2),)
TWO: tuple[Config, ...] = (*ONE, MagnitudeConfig(sparsity=0.5))
TAUGHT: tuple[Config, ...] = (*ONE, DistillConfig(epochs=4, batch=16, lr=1e-3, patience=100))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoint")


@pytest.fixture(scope="module")
def bench(folder: Path) -> Workbench:
    save_rows(folder / "rows.csv", save_tiny_classifier(folder / "model"), count=200)
    return opened(folder / "model", folder / "rows.csv")


def opened(model: Path, rows: Path, **options: Any) -> Workbench:
    return hasten.workbench(model, task="text-classification", data=rows, progress=False, **options)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds of all passes that were run."""
    found: list[str] = []
    paced = compress.paced

    def counted(wrapper: Any, passes: Sequence[Config], number: int, given: Any, **options: Any) -> Any:
        found.append(passes[number].kind)
        return paced(wrapper, passes, number, given, **options)

    monkeypatch.setattr(compress, "paced", counted)
    return found


def weights(bench: Workbench, cache: Path, passes: tuple[Config, ...], notes: list[str] | None = None) -> torch.Tensor:
    made = compressed(
        bench.checkpoint, bench.prepared.task, passes, material=bench.material, cache=cache, rehearse=None,
        notes=[] if notes is None else notes,
    )  # fmt: skip
    return torch.cat([p.detach().flatten() for p in made.parameters()])


def kept(cache: Path, passes: tuple[Config, ...]) -> Path:
    (found,) = cache.glob(f"{passes_id(passes)}-*")
    return found


def rewritten(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (path,) = folder.glob(name)
        path.write_bytes(change(path.read_bytes()))

    return damage


def flipped(content: bytes) -> bytes:
    changed = bytearray(content)
    changed[-7] ^= 0x40
    return bytes(changed)


def gone(folder: Path) -> None:
    (folder / "model" / "config.json").unlink()


def more(folder: Path) -> None:
    (folder / "model" / "another.safetensors").write_bytes(b"x")


DAMAGES = {
    "weights cut": rewritten("model/*.safetensors", lambda c: c[: len(c) // 2]),
    "a bit of the weights": rewritten("model/*.safetensors", flipped),
    "config cut": rewritten("model/config.json", lambda c: c[:40]),
    "no config": gone,
    "a file too many": more,
    "mark empty": rewritten("done.json", lambda _: b""),
    "mark cut": rewritten("done.json", lambda c: c[: len(c) // 2]),
    "mark of another kind": rewritten("done.json", lambda _: b'{"files": [], "notes": 3}'),
    "mark of nothing": rewritten("done.json", lambda _: b'{"files": {}, "notes": []}'),
    "mark without notes": rewritten("done.json", lambda c: json.dumps({"files": json.loads(c)["files"]}).encode()),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_what_is_damaged_is_told_and_made_again(
    damage: Callable[[Path], None], bench: Workbench, ran: list[str], tmp_path: Path
) -> None:
    notes: list[str] = []
    whole = weights(bench, tmp_path, TWO, notes)
    assert ran == ["layers", "magnitude"]
    assert torch.equal(weights(bench, tmp_path, TWO), whole)
    assert ran == ["layers", "magnitude"], "all of it was taken from the disk"
    damage(kept(tmp_path, TWO))
    told: list[str] = []
    assert torch.equal(weights(bench, tmp_path, TWO, told), whole)
    assert ran == ["layers", "magnitude", "magnitude"], "and the first pass's result still is"
    assert [line for line in told if line not in notes] == [told[0]]
    assert DAMAGED in told[0]
    again: list[str] = []
    assert torch.equal(weights(bench, tmp_path, TWO, again), whole)
    assert again == notes, "it is told once"
    assert len(ran) == 3


def test_of_another_checkpoint_or_other_rows_nothing_is_taken(
    bench: Workbench, folder: Path, ran: list[str], tmp_path: Path
) -> None:
    first = weights(bench, tmp_path, ONE)
    bench.checkpoint.model.save_pretrained(folder / "other")
    for path in (folder / "model").glob("tokenizer*"):
        (folder / "other" / path.name).write_bytes(path.read_bytes())
    from transformers import AutoModelForSequenceClassification

    moved = AutoModelForSequenceClassification.from_pretrained(folder / "other")
    with torch.no_grad():
        moved.classifier.bias += 1.0
    moved.save_pretrained(folder / "other")
    assert not torch.equal(weights(opened(folder / "other", folder / "rows.csv"), tmp_path, ONE), first)
    lines = (folder / "rows.csv").read_text().splitlines()
    (folder / "fewer.csv").write_text("\n".join(lines[:-20]))
    weights(opened(folder / "model", folder / "fewer.csv"), tmp_path, ONE)
    weights(opened(folder / "model", folder / "rows.csv", seed=5), tmp_path, ONE)
    assert len(ran) == 4
    assert torch.equal(weights(opened(folder / "model", folder / "rows.csv"), tmp_path, ONE), first)
    assert len(ran) == 4, "the same files are the same"


def test_a_result_that_could_not_be_written_is_not_there(
    bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def halfway(_: Any, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("hasten.models.reshape.save_model", halfway)
        with pytest.raises(OSError, match="No space left"):
            weights(bench, tmp_path, ONE)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
    assert len(weights(bench, tmp_path, ONE))
    assert (kept(tmp_path, ONE) / "done.json").is_file()


def test_ctrl_c_in_a_training_is_gone_on_from(
    bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Any] = []
    noting = compress._noting

    def listening(listen: Any, notes: list[str], progress: Any) -> None:
        noting(listen, notes, progress)
        if "distilling" in progress.what:
            heard.append(progress)
        if len(heard) == 7:
            raise KeyboardInterrupt

    whole = weights(bench, tmp_path / "a", TAUGHT)
    monkeypatch.setattr(compress, "_noting", listening)
    with pytest.raises(KeyboardInterrupt):
        weights(bench, tmp_path / "b", TAUGHT)
    assert "interrupted at step 7 of" in heard[-1].what
    before = len(heard)
    again = weights(bench, tmp_path / "b", TAUGHT)
    assert heard[-1].total > 8
    assert [p.done for p in heard[before:]] == list(range(8, heard[-1].total + 1))
    assert torch.allclose(again, whole, atol=1e-5), "the teacher answers in other batches, which rounds otherwise"
    assert not (kept(tmp_path / "b", TAUGHT) / "state").exists()


def test_a_damaged_state_does_not_stop_a_training(bench: Workbench, tmp_path: Path) -> None:
    weights(bench, tmp_path, ONE)
    state = tmp_path / kept(tmp_path, ONE).name.replace(passes_id(ONE), passes_id(TAUGHT)) / "state"
    state.mkdir(parents=True)
    (state / "training.safetensors").write_bytes(b"garbage")
    notes: list[str] = []
    weights(bench, tmp_path, TAUGHT, notes)
    assert "begun again, as its saved state" in notes[0]
    assert DAMAGED in notes[0]
    again: list[str] = []
    weights(bench, tmp_path, TAUGHT, again)
    assert again == notes[1:], "it is told once"
