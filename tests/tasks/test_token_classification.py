"""Token classification: usual forms of tags are read, scores are seqeval's, places are those of the text as given."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.records import Columns, InputError
from hasten.tasks import get_task
from hasten.tasks.rows import Rows
from hasten.tasks.tagged_text import separated
from hasten.tasks.token_classification import entities_of, standard_tags
from hasten.tasks.tokenize import Tokenizer
from hasten.tasks.wrappers import IGNORED

TASK = get_task("token-classification")
LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
TEXTS = ("w1 w2 w3", "w4")
TAGS = (("B-PER", "I-PER", "O"), ("B-LOC",))


def rows(texts: Sequence[str], tags: Sequence[Sequence[str]] | None) -> Rows:
    labels = None if tags is None else tuple(tuple(own) for own in tags)
    return Rows(tuple(texts), None, labels, "r", "0", ("tokens",))


def read(tmp_path: Path, name: str, content: str, columns: Columns | None = None, **more: Any) -> Rows:
    (tmp_path / name).write_bytes(content.encode())
    return TASK.read(tmp_path / name, columns=columns or Columns(), **more)


def tokenizer(folder: Path, max_length: int = 60) -> Tokenizer:
    return Tokenizer((folder / "tokenizer.json").read_text(), max_length=max_length)


def outputs_of(data: Rows, processor: Tokenizer, guess: Sequence[Sequence[str]]) -> np.ndarray[Any, Any]:
    """What a model gives that says ``guess`` at each word's first token, and nonsense at all other tokens."""
    encoded = [TASK.encode(processor, item) for item in data.items()]
    targets = TASK.targets(rows(data.texts, guess), LABELS, encoded)
    assert targets is not None
    known = [np.where(target == IGNORED, 3, target) for target in targets]
    return TASK.outputs([5.0 * np.eye(len(LABELS), dtype=np.float32)[own] for own in known], encoded)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "a.jsonl",
            '{"id": 1, "tokens": ["w1", "w2", "w3"], "ner_tags": ["B-PER", "I-PER", "O"], "tags": 0}\n'
            '{"id": 2, "tokens": ["w4"], "ner_tags": ["B-LOC"], "tags": 0}\n',
        ),
        ("a.jsonl", '{"tokens": "w1 w2 w3", "labels": "B-PER I-PER O"}\n{"tokens": "w4", "labels": "B-LOC"}\n'),
        ("a.json", '[{"words": ["w1", "w2", "w3"], "tags": "B-PER I-PER O"}, {"words": ["w4"], "tags": ["B-LOC"]}]'),
        ("a.csv", "tokens,tags\nw1 w2 w3,B-PER I-PER O\nw4,B-LOC\n"),
        ("a.tsv", "text\tlabels\nw1 w2 w3\tB-PER I-PER O\nw4\tB-LOC\n"),
        ("a.conll", "w1 B-PER\nw2 I-PER\nw3 O\n\nw4 B-LOC\n"),
        ("a.bio", "\n\nw1\tB-PER\r\nw2\tI-PER\r\nw3\tO\r\n\r\n\r\nw4\tB-LOC"),
        ("a.iob2", "-DOCSTART- -X- O\n\nw1 N x B-PER\nw2 N x I-PER\nw3 . x O\n\n-DOCSTART- -X- O\n\nw4 N y B-LOC\n"),
    ],
)
def test_forms(tmp_path: Path, name: str, content: str) -> None:
    found = read(tmp_path, name, content)
    assert (found.texts, found.pairs, found.labels) == (TEXTS, None, TAGS)
    assert TASK.check(found, LABELS)[0].labels == TAGS


def test_parquet_with_class_ids(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"tokens": [["w1", "w2", "w3"], ["w4"]], "ner_tags": [[1, 2, 0], [3]]})
    frame.to_parquet(tmp_path / "a.parquet")
    found, warnings = TASK.check(TASK.read(tmp_path / "a.parquet", columns=Columns()), LABELS)
    assert found.labels == TAGS
    assert any("1 is B-PER" in warning for warning in warnings)


def test_named_columns_and_content_hash(tmp_path: Path) -> None:
    named = Columns(text="a", label="b")
    found = read(tmp_path, "a.csv", "a,b,tags\nw1 w2 w3,B-PER I-PER O,x\nw4,B-LOC,x\n", named)
    assert found.labels == TAGS
    assert found.sha256 == read(tmp_path, "b.conll", "w1 B-PER\nw2 I-PER\nw3 O\n\nw4 B-LOC\n").sha256
    assert found.sha256 != read(tmp_path, "c.conll", "w1 B-PER\nw2 O\nw3 O\n\nw4 B-LOC\n").sha256


def test_without_labels_the_users_text_stays(tmp_path: Path) -> None:
    found = read(tmp_path, "a.jsonl", '{"text": "  a\\tb. ", "spans": 3}\n', labels_wanted=False)
    assert (found.texts, found.labels) == (("  a\tb. ",), None)
    found = read(tmp_path, "a.conll", "a\nb\n\nc O\n", labels_wanted=False)
    assert (found.texts, found.labels) == (("a b", "c"), None)


def test_spans_become_tags(tmp_path: Path) -> None:
    turns = [
        {
            "userInput": {"text": "12pm. It’s 2 adults"},
            "labels": [
                {"slot": "people", "valueSpan": {"startIndex": 11, "endIndex": 19}},
                {"slot": "time", "valueSpan": {"endIndex": 4}},
            ],
        },
        {"userInput": {"text": "No  way"}, "context": {}},
    ]
    found = read(tmp_path, "a.json", json.dumps(turns, indent=1))
    assert found.texts == ("12pm . It ’ s 2 adults", "No way")
    assert found.labels == (("B-time", "O", "O", "O", "O", "B-people", "I-people"), ("O", "O"))
    flat = {"text": "12pm. It’s 2 adults", "entities": [{"start": 11, "end": 19, "label": "people"}]}
    found = read(tmp_path, "a.jsonl", json.dumps(flat) + '\n{"text": "No", "entities": []}\n')
    assert found.labels == (("O", "O", "O", "O", "O", "B-people", "I-people"), ("O",))


def test_of_spans_that_share_a_word_the_longest_counts(tmp_path: Path) -> None:
    spans = [{"start": a, "end": b, "label": n} for a, b, n in ((0, 1, "x"), (0, 5, "y"), (0, 5, "z"), (6, 7, "x"))]
    found = read(tmp_path, "a.jsonl", json.dumps({"text": "a b c d10", "spans": spans}))
    assert found.labels == (("B-y", "I-y", "I-y", "B-x"),)


def test_words_keep_their_marks() -> None:
    text = "नमस्ते, e\u0301a (x)"
    assert [text[a:b] for a, b in separated(text)] == ["नमस्ते", ",", "e\u0301a", "(", "x", ")"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.conll", "w1 O\nw2\n", "line 2: the word 'w2' has no tag"),
        ("a.conll", "\n\n", "is empty"),
        ("a.conll", "-DOCSTART- O\n", "holds no words"),
        ("a.conll", "\u00a0 O\n", "line 1: word 1"),
        ("a.jsonl", '{"tokens": ["a", 3], "tags": ["O", "O"]}', "row 1 of .*: word 2 is int '3'"),
        ("a.jsonl", '{"tokens": ["a", " "], "tags": ["O", "O"]}', "word 2 is str ' '"),
        ("a.jsonl", '{"tokens": null, "tags": []}', "word 1 is NoneType"),
        ("a.jsonl", '{"tokens": ["a"], "tags": {"x": 1}}', "expected: a tag for each word"),
        ("a.jsonl", '{"tokens": ["a"], "tags": null}', "holds NoneType"),
        ("a.jsonl", '{"tokens": ["a"], "tags": [null]}', "row 1 of"),
        ("a.jsonl", '{"foo": ["a"], "tags": ["O"]}', "--text-column"),
        ("a.jsonl", '{"tokens": ["a"], "tags": ["O"], "labels": ["O"]}', "--label-column"),
        ("a.jsonl", '{"text": "a b", "spans": [{"start": 0, "end": 9, "label": "x"}]}', "beyond the text's 3"),
        ("a.jsonl", '{"text": "a b", "spans": [{"start": 1, "end": 2, "label": "x"}]}', "holds no word"),
        ("a.jsonl", '{"text": "a b", "spans": [{"start": 2, "end": 2, "label": "x"}]}', "the span"),
        ("a.jsonl", '{"text": "a b", "spans": [{"start": 0, "end": 1}]}', "the span"),
        ("a.jsonl", '{"text": "a b", "spans": "x"}', "a list of spans"),
        ("a.json", '[{"userInput": {}}]', "row 1 of .* lacks a part of a tagged turn"),
        ("a.json", '[{"userInput": {"text": "a"}, "labels": [{"slot": "x", "valueSpan": {}}]}]', "endIndex"),
        ("a.csv", "tokens,tags\n", "holds no rows"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(InputError, match="to do:") as caught:
        read(tmp_path, name, content)
    assert re.search(message, str(caught.value), re.DOTALL)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        TASK.read(tmp_path / "none.conll", columns=Columns())


@pytest.mark.parametrize(
    ("tags", "labels", "message"),
    [
        (None, LABELS, "has no tags"),
        ([["O", "O"], ["O"]], LABELS, "row 1 of r has 3 words and 2 tags"),
        ([["O", "O", "O"], ["O", "B-PER"]], LABELS, "row 2 of r has 1 words and 2 tags"),
        ([["O", "O", "O"], ["O"]], LABELS, "outside all entities"),
        ([["B-PER", "I-PER", "O"], ["B-ORG"]], LABELS, "does not know: B-ORG"),
        ([["1", "9", "0"], ["0"]], LABELS, "does not know"),
        ([["PER", "PER", "O"], ["LOC"]], LABELS, r"another scheme than the model's: no prefix \(such as LOC, PER\)"),
        ([["B-PER", "E-PER", "O"], ["S-LOC"]], LABELS, "another scheme than the model's: E-, S-"),
        ([["B-PER", "I-PER", "O"], ["B-LOC"]], ("O", "PER", "LOC"), "(?s)another scheme.*expected: no prefix"),
        (TAGS, ("NOUN", "VERB"), "lack 'O'"),
    ],
)
def test_check_says_what_does_not_fit(tags: Any, labels: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TASK.check(rows(TEXTS, tags), labels)


@pytest.mark.parametrize(
    "tags", [TAGS, [["b-per", "I-Per", "o"], ["B-LOC "]], [["1", "2", "0"], ["3"]], [["1.0", "2.0", "0.0"], ["3.0"]]]
)
def test_tags_in_the_models_spelling(tags: Any) -> None:
    found, warnings = TASK.check(rows(TEXTS, tags), LABELS)
    assert found.labels == TAGS
    assert "only 2 rows" in warnings[0]
    assert (len(warnings) == 2) == str(tags[0][0]).startswith("1")


def test_good_and_bad_models_separate(checkpoint: Callable[[str], Path]) -> None:
    rng, processor = np.random.default_rng(0), tokenizer(checkpoint("bert"))
    texts = [" ".join(f"w{n},w1" for n in rng.integers(60, size=rng.integers(1, 12))) for _ in range(100)]
    tags = [rng.choice(LABELS, size=len(text.split()), p=(0.4, 0.2, 0.1, 0.2, 0.1)).tolist() for text in texts]
    data, warnings = TASK.check(rows(texts, tags), LABELS)
    assert warnings == ()
    good = outputs_of(data, processor, tags)
    assert good.shape == (100, max(len(own) for own in tags), len(LABELS))
    bad = rng.normal(size=good.shape)
    scores = [TASK.score(outputs, data, LABELS, reference=None) for outputs in (good, bad)]
    assert (scores[0].metric, scores[0].value, scores[0].n) == ("seqeval_f1", 100.0, 100)
    assert dict(scores[0].others) == {"precision": 100.0, "recall": 100.0, "token_accuracy": 100.0}
    assert scores[1].value < 40
    assert TASK.per_row(good, data, LABELS, reference=None) is None
    said, right = TASK.predictions(good, data, LABELS) or ([], [])
    assert said == right == [" ".join(own) for own in tags]
    assert [record["tags"] for record in TASK.decode(good, data, LABELS)] == tags


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(*[st.sampled_from(LABELS)] * 2), min_size=1, max_size=9), min_size=1, max_size=6))
def test_scores_are_seqevals(pairs: list[list[tuple[str, str]]]) -> None:
    from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score

    truth, guess = ([[pair[side] for pair in row] for row in pairs] for side in (0, 1))
    outputs = np.zeros((len(pairs), max(map(len, pairs)), len(LABELS)))
    for row, own in zip(outputs, guess, strict=True):
        row[np.arange(len(own)), [LABELS.index(tag) for tag in own]] = 1.0
    found = TASK.score(outputs, rows([" ".join("w" * len(own)) for own in truth], truth), LABELS, reference=None)
    assert found.value == pytest.approx(100 * f1_score(truth, guess, zero_division=0))
    assert found.others["precision"] == pytest.approx(100 * precision_score(truth, guess, zero_division=0))
    assert found.others["recall"] == pytest.approx(100 * recall_score(truth, guess, zero_division=0))
    assert found.others["token_accuracy"] == pytest.approx(100 * accuracy_score(truth, guess))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["O", *(f"{letter}-{kind}" for letter in "BIES" for kind in ("X", "Y-Z"))])))
def test_entities_are_seqevals(tags: list[str]) -> None:
    from seqeval.metrics.sequence_labeling import get_entities

    assert entities_of(tags) == get_entities(tags)


def test_schemes() -> None:
    assert standard_tags(("O", "U-A", "B-A", "I-A", "L-A", "X"))["U-A"] == "S-A"
    assert standard_tags(("O", "U-A", "B-A", "I-A", "L-A", "X"))["X"] == "O"
    plain = standard_tags(("O", "PER", "E-MAIL"))
    assert entities_of([plain[t] for t in ("PER", "PER", "E-MAIL", "O", "PER")]) == [
        ("PER", 0, 1),
        ("E-MAIL", 2, 2),
        ("PER", 4, 4),
    ]


def test_what_was_cut_off_is_outside(checkpoint: Callable[[str], Path]) -> None:
    processor = tokenizer(checkpoint("bert"), max_length=6)  # four tokens and two special ones
    tags = [["B-PER", "I-PER", "B-LOC", "B-LOC", "B-PER", "B-PER"], ["B-LOC"], ["B-PER"]]
    data, _ = TASK.check(rows(["w1 w2,w3 w4 w5 w6 w7", "w8", "w9"], tags), LABELS)
    encoded = [TASK.encode(processor, item) for item in data.items()]
    assert [own[0].truncated for own in encoded] == [True, False, False]
    targets = TASK.targets(data, LABELS, encoded)
    assert targets is not None
    assert targets[0].tolist() == [IGNORED, 1, 2, IGNORED, IGNORED, IGNORED]
    outputs = outputs_of(data, processor, tags)
    assert outputs.shape == (3, 2, len(LABELS))
    said, _ = TASK.predictions(outputs, data, LABELS) or ([], [])
    assert said == ["B-PER I-PER O O O O", "B-LOC", "B-PER"]
    found = TASK.score(outputs, data, LABELS, reference=None)
    assert found.others["precision"] == 100.0
    assert found.others["recall"] == pytest.approx(100 * 3 / 7)
    assert found.others["token_accuracy"] == 50.0


def test_no_words_at_all(checkpoint: Callable[[str], Path]) -> None:
    processor = tokenizer(checkpoint("bert"))
    encoded = [TASK.encode(processor, {"text": text}) for text in ("", " \n")]
    raw = [np.ones((own[0].length, len(LABELS)), dtype=np.float32) for own in encoded]
    outputs = TASK.outputs(raw, encoded)
    assert outputs.shape == (2, 0, len(LABELS))
    assert TASK.decode(outputs, rows(["", " \n"], None), LABELS) == [{"entities": [], "tags": []}] * 2


def test_places_are_of_the_text_as_given() -> None:
    text = "  Zoë   Ångström–Smith lives\tin\u00a0København,  😀 now "
    tags = ["B-PER", "I-PER", "O", "O", "B-LOC", "I-LOC", "O"]
    outputs = 4.0 * np.eye(len(LABELS))[[LABELS.index(tag) for tag in tags]][None]
    (record,) = TASK.decode(outputs, rows([text], None), LABELS)
    assert record["tags"] == tags
    assert [(e["label"], e["text"]) for e in record["entities"]] == [
        ("PER", "Zoë   Ångström–Smith"),
        ("LOC", "København,  😀"),
    ]
    for entity in record["entities"]:
        assert text[entity["start"] : entity["end"]] == entity["text"]
        assert entity["score"] == pytest.approx(np.exp(4) / (np.exp(4) + 4))


@pytest.mark.real
def test_restaurants(shared: Path) -> None:
    found = TASK.read(shared / "data" / "restaurant8k" / "train_0.json", columns=Columns())
    names = sorted({tag for tags in found.labels or () for tag in tags})
    assert {name[2:] for name in names if name != "O"} == {"date", "first_name", "last_name", "people", "time"}
    checked, warnings = TASK.check(found, names)
    assert (len(checked), warnings) == (8198, ())
    first = sum(tag.startswith("B-") for tags in checked.labels or () for tag in tags)
    assert first == pytest.approx(7635, rel=0.01)  # the spans of the file, less those over another
