"""Embeddings from data to a bundle that predicts: labelled pairs (two vectors a row) and texts without labels."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import numpy as np
import pytest

import hasten
from hasten.pipeline.result import Result

WORDS = [f"w{i}" for i in range(60)]
pytestmark = pytest.mark.slow
PAIRS = [{"text": "w1 w2 w3", "text_pair": "w4 w5"}, {"text": "w1 w2 w3", "text_pair": "w1 w2 w3"}]


def save_pairs(path: Path, *, labelled: bool) -> Path:
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(2, 20))) for _ in range(120)]
    rows = [(a, b, rng.randint(0, 5)) for a, b in zip(texts[::2], texts[1::2], strict=True)]
    columns = ("text", "text_pair", "score")[: 3 if labelled else 1]
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([columns, *(row[: len(columns)] for row in rows)])
    return path


def run(tiny: tuple[Path, Path], folder: Path, *, labelled: bool) -> Result:
    return hasten.optimize(
        tiny[0], task="feature-extraction", data=save_pairs(folder / "rows.csv", labelled=labelled), time="3m",
        budget="", out=folder / "out", runtimes=("onnxruntime",), techniques=("fp32",),
    )  # fmt: skip


def test_labelled_pairs_become_a_bundle(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    result = run(tiny, tmp_path, labelled=True)
    assert result.outcome == "met", result
    assert result.verdict.chosen is not None
    assert result.verdict.chosen.figures.quality is not None
    assert result.verdict.chosen.figures.quality.metric == "spearman"
    with result.load() as model:
        different, same = model.predict(PAIRS)
        alone = model.predict(["w1 w2 w3"])[0]
    assert isinstance(different, dict)
    assert isinstance(same, dict)
    assert same["similarity"] == pytest.approx(1.0, abs=1e-5)
    assert different["similarity"] < 0.999
    assert np.allclose(different["vectors"][0], alone, atol=1e-5)


def test_texts_without_labels_are_judged_by_fidelity(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    result = run(tiny, tmp_path, labelled=False)
    assert result.outcome == "met", result
    assert result.verdict.chosen is not None
    quality = result.verdict.chosen.figures.quality
    assert quality is not None
    assert quality.value == pytest.approx(100.0, abs=0.1)
    with result.load() as model:
        assert len(model.predict(["w1"])[0]) == 32
