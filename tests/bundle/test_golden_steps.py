"""Golden examples of what writes text: a cache that went wrong is seen, which the prompt alone does not show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles_for_tests import language_bundle
from interchange_models import saved, tiny

from hasten.bundle import load
from hasten.bundle.answers import Answers
from hasten.bundle.golden import FILE_NAME, Golden, check_golden, check_shape, make_golden, read_golden, write_golden
from hasten.bundle.manifest import hash_file, read_manifest, write_manifest
from hasten.measure.writing import FORCED
from hasten.pipeline.check import _golden
from hasten.records import InputError
from hasten.runtimes.torch_generation import TorchDecoder
from hasten.tasks.rows import Rows


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("writes")
    answers = Answers(most=4, timed=3, ends=(0,))
    return language_bundle(
        saved(tiny("llama"), folder / "model"), folder / "bundle", task="text-generation", answers=answers
    )


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that do not hear what was written; prompts are read as ever."""
    step = TorchDecoder.step
    monkeypatch.setattr(TorchDecoder, "step", lambda self, ids: step(self, np.full_like(ids, 9)))


def test_a_sound_bundle_opens_and_says_what_was_compared(bundle: Path) -> None:
    golden = read_golden(bundle)
    assert golden.follows == ((3, 7, 5),)
    assert len(golden.outputs[0]) == 4 * 66
    with load(bundle) as model:
        assert model.predict(["the cat"])[0]["tokens"] >= 1
    assert "3 tokens through the cache included" in _golden(read_manifest(bundle), golden).detail
    assert "cache" not in _golden(read_manifest(bundle), replace(golden, follows=None)).detail


@pytest.mark.usefixtures("deaf")
def test_steps_that_went_wrong_are_seen(bundle: Path) -> None:
    with pytest.raises(InputError, match="golden outputs differ"):
        load(bundle)


@pytest.mark.usefixtures("deaf")
def test_bundles_of_before_are_compared_by_their_prompts(bundle: Path, tmp_path: Path) -> None:
    """They hold no steps; that the wrong ones pass here is what the steps are for."""
    import shutil

    old = Path(shutil.copytree(bundle, tmp_path / "old"))
    golden = read_golden(old)
    write_golden(old, replace(golden, follows=None, outputs=(golden.outputs[0][:66],)))
    before = hash_file(old / FILE_NAME)
    write_manifest(old, read_manifest(old))
    assert read_manifest(old).files[FILE_NAME] == before
    load(old).close()


def test_large_vocabularies_are_thinned_at_every_step() -> None:
    rows = Rows(("t",), None, None, "rows.csv", "0")
    logits = np.random.default_rng(0).normal(size=(1, 3, 4096)).astype(np.float32)
    batch: dict[str, Any] = {"input_ids": np.array([[1, 2]])}
    golden = make_golden(rows, batches=[{**batch, FORCED: np.array([[5, 6]])}], outputs=[logits])
    assert golden.follows == ((5, 6),)
    assert len(golden.outputs[0]) == 3 * 1024
    check_shape(golden, labels=())
    with pytest.raises(InputError, match="golden examples have"):
        check_shape(replace(golden, follows=((5, 6), (7, 8))), labels=())
    batches = golden.followed([batch])
    assert batches[0][FORCED].tolist() == [[5, 6]]
    assert check_golden(golden, lambda _: logits, batches=batches, tolerance=1e-6) == 0.0
    moved = logits.copy()
    moved[0, 2] += 0.1
    with pytest.raises(InputError, match="golden outputs differ"):
        check_golden(golden, lambda _: moved, batches=batches, tolerance=1e-3)
    plain = Golden(("t",), None, ((1, 2),), ((0.5,),))
    assert plain.followed([batch]) == [batch]
