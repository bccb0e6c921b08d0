"""Image classification: examples, targets and metrics, which are scikit-learn's."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_cases import NAMES, TASK, class_folders, png, read
from PIL import Image

from hasten.records import InputError, ModelRef
from hasten.tasks.examples import collate
from hasten.tasks.processor import open_processor
from hasten.tasks.rows import Rows


def test_examples_and_targets(tmp_path: Path, checkpoint: Callable[[str], Path]) -> None:
    files = {"preprocessor_config.json": (checkpoint("vit") / "preprocessor_config.json").read_bytes()}
    processor = open_processor(files, max_length=64)
    rows, _ = TASK.check(read(class_folders(tmp_path / "data")), NAMES)
    encoded = [TASK.encode(processor, item) for item in rows.items()]
    assert [len(examples) for examples in encoded] == [1, 1, 1]
    batch = collate([examples[0] for examples in encoded], ("pixel_values",))
    assert batch["pixel_values"].shape == (3, 3, 16, 16)
    assert batch["pixel_values"].dtype == np.float32
    targets = TASK.targets(rows, NAMES, encoded)
    assert targets is not None
    assert [int(target) for target in targets] == [0, 0, 1]
    assert TASK.targets(read(tmp_path / "data", labels_wanted=False), NAMES, encoded) is None
    with pytest.raises(InputError, match=r"cat/a\.png cannot be decoded"):
        TASK.encode(processor, {"text": "cat/a.png", "image": png(0)[:-30]})
    for image in (tmp_path / "data" / "cat" / "a.png", Image.open(io.BytesIO(png(0)))):
        (found,) = TASK.encode(processor, {"image": image})
        assert np.array_equal(found.arrays["pixel_values"], encoded[0][0].arrays["pixel_values"])


def rows_of(labels: list[str]) -> Rows:
    return Rows(tuple(map(str, range(len(labels)))), None, tuple(labels), "r", "0", images=(b"",) * len(labels))


@pytest.mark.parametrize("classes", [3, 9])
def test_metrics_are_sklearns(classes: int) -> None:
    from sklearn.metrics import accuracy_score, f1_score, top_k_accuracy_score

    rng = np.random.default_rng(1)
    names = tuple("abcdefghi"[:classes])
    truth, outputs = rng.integers(classes, size=200), rng.normal(size=(200, classes))
    rows = rows_of([names[i] for i in truth])
    found, guess = TASK.score(outputs, rows, names, reference=None), outputs.argmax(axis=1)
    assert (found.metric, found.n) == ("accuracy", 200)
    assert found.value == pytest.approx(100 * accuracy_score(truth, guess))
    assert found.others["macro_f1"] == pytest.approx(100 * f1_score(truth, guess, average="macro"))
    assert ("top5_accuracy" in found.others) == (classes > 5)
    if classes > 5:
        assert found.others["top5_accuracy"] == pytest.approx(100 * top_k_accuracy_score(truth, outputs, k=5))
    each = TASK.per_row(outputs, rows, names, reference=None)
    assert each is not None
    assert each.mean() == pytest.approx(found.value)
    record = TASK.decode(outputs[:1], rows.take([0]), names)[0]
    assert record["label"] == names[guess[0]]
    assert record["score"] == max(record["scores"].values())
    assert sum(record["scores"].values()) == pytest.approx(1.0)
    says = TASK.predictions(outputs, rows, names)
    assert says is not None
    assert [a == b for a, b in zip(*says, strict=True)] == (guess == truth).tolist()


def test_the_same_picture_is_the_same_row() -> None:
    rows = Rows(("a", "b", "c"), None, ("x", "y", "x"), "r", "0", images=(png(0), png(0), png(1)))
    assert len(set(rows.keys())) == 2


@pytest.mark.real
def test_real_classifier_scores_what_it_should(shared: Path) -> None:
    import torch

    from hasten.models.load import load_checkpoint

    found = load_checkpoint(ModelRef(str(shared / "models" / "vit-fashion")), task=TASK)
    source = shared / "data" / "fashion-mnist" / "t10k-images-idx3-ubyte.gz"
    rows, _ = TASK.check(read(source), found.labels)
    rows = rows.take(range(0, len(rows), 10))
    processor = open_processor(found.processor_files, max_length=found.max_length)
    encoded = [TASK.encode(processor, item) for item in rows.items()]
    wrapper, outputs = TASK.wrap(found), []
    with torch.inference_mode():
        for start in range(0, len(rows), 50):
            batch = collate([examples[0] for examples in encoded[start : start + 50]], found.input_names)
            outputs += list(wrapper(**{k: torch.from_numpy(v) for k, v in batch.items()}).numpy())
    assert TASK.score(TASK.outputs(outputs, encoded), rows, found.labels, reference=None).value == pytest.approx(
        86.23, abs=3
    )
