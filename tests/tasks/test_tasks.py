"""Tasks: the tokenizer is transformers' own, labels are mapped or refused, metrics separate good from bad."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from hasten.records import Columns, InputError, ModelRef
from hasten.tasks import get_task
from hasten.tasks.examples import collate
from hasten.tasks.feature_extraction import neighbour_overlap
from hasten.tasks.one_label import map_labels
from hasten.tasks.rows import Rows, read_rows
from hasten.tasks.tokenize import Tokenizer

TEXTS = [
    "",
    " ",
    "w1 w2",
    "W1, w2!",
    "naïve café",
    "日本語のテキスト",
    "emoji 😀 w3",
    "w5 " * 300,
    "a\nb\tc",
    "\u202eright to left",
]


def rows(labels: list[str] | None, pairs: list[str] | None = None, count: int | None = None) -> Rows:
    n = count or len(labels or pairs or [])
    texts = tuple(f"text {i}" for i in range(n))
    return Rows(texts, None if pairs is None else tuple(pairs), None if labels is None else tuple(labels), "r", "0")


@pytest.mark.parametrize("pair", [None, "w7 w8"])
def test_tokenizes_like_transformers(checkpoint: Callable[[str], Path], pair: str | None) -> None:
    folder = checkpoint("bert")
    ours = Tokenizer((folder / "tokenizer.json").read_text(), max_length=40)
    theirs = AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        found = ours.encode(text, pair)
        wanted = theirs(text, pair, truncation=True, max_length=40)
        assert found.arrays["input_ids"].tolist() == wanted["input_ids"]
        assert found.truncated == (len(theirs(text, pair)["input_ids"]) > 40)


def test_lone_surrogates_and_broken_files_do_not_crash(checkpoint: Callable[[str], Path]) -> None:
    ours = Tokenizer((checkpoint("bert") / "tokenizer.json").read_text(), max_length=40)
    assert len(ours.encode("w1 \ud800 w2").arrays["input_ids"]) > 2
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        Tokenizer("{}", max_length=40)


def test_padding(checkpoint: Callable[[str], Path]) -> None:
    ours = Tokenizer((checkpoint("bert") / "tokenizer.json").read_text(), max_length=40)
    batch = collate(
        [ours.encode("w1"), ours.encode("w1 w2 w3", "w4")], ("input_ids", "attention_mask", "token_type_ids")
    )
    assert {k: v.shape for k, v in batch.items()} == dict.fromkeys(batch, (2, 7))
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0, 0], [1] * 7]
    assert batch["token_type_ids"][1].tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert set(collate([ours.encode("w1")], ("input_ids",))) == {"input_ids"}


@pytest.mark.parametrize(
    ("found", "mapped"),
    [
        (["card_arrival", "lost"], ["card_arrival", "lost"]),
        (["Card Arrival", "LOST "], ["card_arrival", "lost"]),
        (["0", "1"], ["card_arrival", "lost"]),
        (["0.0", "1.0"], ["card_arrival", "lost"]),
    ],
)
def test_labels_in_the_models_spelling(found: list[str], mapped: list[str]) -> None:
    assert map_labels(found, ("card_arrival", "lost"), source="r") == mapped


@pytest.mark.parametrize("found", [["lost", "stolen"], ["0", "2"], ["", "lost"]])
def test_unknown_labels_are_listed(found: list[str]) -> None:
    with pytest.raises(InputError, match="does not know"):
        map_labels(found, ("card_arrival", "lost"), source="r")


def test_classification_refuses_what_says_nothing() -> None:
    task = get_task("text-classification")
    with pytest.raises(InputError, match="no label column"):
        task.check(rows(None, count=3), ("no", "yes"))
    with pytest.raises(InputError, match="all 3 rows"):
        task.check(rows(["yes"] * 3), ("no", "yes"))
    _, warnings = task.check(rows(["yes", "no"]), ("no", "yes"))
    assert "only 2 rows" in warnings[0]
    assert task.check(rows(["yes", "no"] * 30), ("no", "yes"))[1] == ()


def test_features_take_labels_only_with_pairs() -> None:
    task = get_task("feature-extraction")
    kept, warnings = task.check(rows(["1", "2"]), ())
    assert kept.labels is None
    assert any("not used" in w for w in warnings)
    assert task.check(rows(["1", "0.5"], ["a", "b"]), ())[0].labels == (1.0, 0.5)
    for bad in (["x", "1"], ["1", "1"], ["nan", "1"]):
        with pytest.raises(InputError):
            task.check(rows(bad, ["a", "b"]), ())


@pytest.mark.parametrize("name", ["text-classification", "feature-extraction"])
def test_contract_good_and_bad_models_separate(name: str) -> None:
    task, rng = get_task(name), np.random.default_rng(0)
    labels = ("no", "yes") if name == "text-classification" else ()
    data, _ = task.check(rows(["no", "yes"] * 50 if labels else None, count=100), labels)
    truth = np.eye(2)[[i % 2 for i in range(100)]] if labels else rng.normal(size=(100, 16))
    good, bad = truth + 0.01 * rng.normal(size=truth.shape), rng.normal(size=truth.shape)
    scores = [task.score(o, data, labels, reference=truth) for o in (good, bad)]
    assert scores[0].value > 95
    assert scores[1].value < 75
    assert scores[0].n == 100
    for outputs, score in zip((good, bad), scores, strict=True):
        each = task.per_row(outputs, data, labels, reference=truth)
        assert each is not None
        assert np.isclose(each.mean(), score.value)
    assert len(task.decode(good, data, labels)) == 100


def test_classification_metrics_are_sklearns() -> None:
    from sklearn.metrics import f1_score, matthews_corrcoef

    task, rng = get_task("text-classification"), np.random.default_rng(1)
    names = ("a", "b", "c")
    truth, outputs = rng.integers(3, size=60), rng.normal(size=(60, 3))
    data = rows([names[i] for i in truth])
    found = task.score(outputs, data, names, reference=None)
    guess = outputs.argmax(1)
    assert found.value == pytest.approx(100 * (guess == truth).mean())
    assert found.others["macro_f1"] == pytest.approx(100 * f1_score(truth, guess, average="macro"))
    assert found.others["mcc"] == pytest.approx(100 * matthews_corrcoef(truth, guess))
    record = task.decode(outputs[:1], data.take([0]), names)[0]
    assert record["label"] == names[guess[0]]
    assert record["score"] == max(record["scores"].values())


def test_spearman_of_pairs() -> None:
    task = get_task("feature-extraction")
    angles = np.linspace(0, 1.5, 20)
    outputs = np.stack([[[1.0, 0.0], [np.cos(a), np.sin(a)]] for a in angles])
    data, _ = task.check(rows([str(-a) for a in angles], ["p"] * 20), ())
    assert task.score(outputs, data, (), reference=None).value == pytest.approx(100)
    assert task.per_row(outputs, data, (), reference=None) is None


def test_neighbour_overlap() -> None:
    space = np.random.default_rng(0).normal(size=(50, 8))
    assert neighbour_overlap(space, space * 3.0) == 1.0
    assert neighbour_overlap(space, np.random.default_rng(1).normal(size=(50, 8))) < 0.5
    assert neighbour_overlap(space[:1], space[:1]) == 1.0


def test_unknown_task_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean text-classification"):
        get_task("text-classify")


@pytest.mark.real
def test_real_classifier_scores_what_it_should(shared: Path) -> None:
    import torch

    from hasten.models.load import load_checkpoint

    found = load_checkpoint(ModelRef(str(shared / "models" / "minilm-banking77")), task=get_task("text-classification"))
    task = get_task("text-classification")
    data, _ = task.check(read_rows(shared / "data" / "banking77" / "test.csv", columns=Columns()), found.labels)
    data = data.take(range(0, len(data), 8))
    tokenizer = Tokenizer(found.tokenizer_json, max_length=found.max_length)
    wrapper, outputs = task.wrap(found), []
    names = ("input_ids", "attention_mask", "token_type_ids")
    with torch.inference_mode():
        for start in range(0, len(data), 32):
            batch = collate([tokenizer.encode(t) for t in data.texts[start : start + 32]], names)
            outputs.append(wrapper(**{k: torch.from_numpy(v) for k, v in batch.items()}).numpy())
    assert task.score(np.concatenate(outputs), data, found.labels, reference=None).value == pytest.approx(93.28, abs=3)
