"""Embeddings from labelled pairs (two vectors a row) to a bundle that predicts."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import numpy as np
import pytest
from own_core import own_core

import hasten

WORDS = [f"w{i}" for i in range(60)]
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("short_duels")]
PAIRS = [{"text": "w1 w2 w3", "text_pair": "w4 w5"}, {"text": "w1 w2 w3", "text_pair": "w1 w2 w3"}]


def save_pairs(path: Path) -> Path:
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(2, 20))) for _ in range(120)]
    rows = [(a, b, rng.randint(0, 5)) for a, b in zip(texts[::2], texts[1::2], strict=True)]
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([("text", "text_pair", "score"), *rows])
    return path


def test_labelled_pairs_become_a_bundle(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    result = hasten.optimize(
        tiny[0], task="feature-extraction", data=save_pairs(tmp_path / "rows.csv"), time="80s", budget="",
        out=tmp_path / "out", runtimes=("onnxruntime",), cores=own_core(), techniques=("fp32",),
    )  # fmt: skip
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
