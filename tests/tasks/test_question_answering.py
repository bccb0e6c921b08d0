"""Question answering: SQuAD's forms are read, answers are found in any window and named by their characters."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.records import Columns, InputError
from hasten.tasks import get_task
from hasten.tasks.examples import Example
from hasten.tasks.rows import Rows
from hasten.tasks.squad import Answer, exact_match, f1
from hasten.tasks.tokenize import Tokenizer

TASK = get_task("question-answering")
CONTEXT = " ".join(f"w{n}" for n in range(60))
ANSWERS = ((Answer("w1", 3), Answer("w1 w2", 3)), (Answer("w5", 15),))


def rows(contexts: Sequence[str], answers: Sequence[Sequence[Answer]] | None) -> Rows:
    labels = None if answers is None else tuple(tuple(own) for own in answers)
    return Rows(tuple(f"w{i % 60} w{i // 60}" for i in range(len(contexts))), tuple(contexts), labels, "r", "0")


def place(context: str, text: str) -> tuple[Answer]:
    return (Answer(text, context.index(text)),)


def read(tmp_path: Path, name: str, content: str, columns: Columns | None = None, **more: Any) -> Rows:
    (tmp_path / name).write_bytes(content.encode())
    return TASK.read(tmp_path / name, columns=columns or Columns(), **more)


def tokenizer(folder: Path, max_length: int = 64) -> Tokenizer:
    return Tokenizer((folder / "tokenizer.json").read_text(), max_length=max_length)


def examples(data: Rows, processor: Tokenizer) -> list[tuple[Example, ...]]:
    return [TASK.encode(processor, item) for item in data.items()]


def outputs_of(data: Rows, processor: Tokenizer, *, sure: float = 10.0) -> np.ndarray[Any, Any]:
    """What a model gives that has learned the targets by heart."""
    encoded = examples(data, processor)
    windows = [window for own in encoded for window in own]
    raw = []
    for window, target in zip(windows, TASK.targets(data, (), encoded) or (), strict=True):
        logits = np.zeros((window.length, 2), dtype=np.float32)
        logits[target, [0, 1]] = sure
        raw.append(logits)
    return TASK.outputs(raw, encoded)


def squad(answers: list[dict[str, Any]], **more: Any) -> str:
    asked = [
        {"id": "a", "question": "q1", "answers": answers, **more},
        {"id": "b", "question": "q2", "answers": [{"text": "w5", "answer_start": 15}]},
    ]
    return json.dumps(
        {"version": "x", "data": [{"title": "t", "paragraphs": [{"context": CONTEXT, "qas": asked}]}]}, indent=1
    )


def quoted(cell: str) -> str:
    return chr(34) + cell.replace(chr(34), 2 * chr(34)) + chr(34)


FLAT = [
    {"id": 1, "question": "q1", "context": CONTEXT, "answers": {"text": ["w1", "w1 w2"], "answer_start": [3, 3]}},
    {"id": 2, "question": "q2", "context": CONTEXT, "answers": {"text": ["w5"], "answer_start": [15]}},
]


def test_nested_form(tmp_path: Path) -> None:
    both = [{"text": "w1", "answer_start": 3}, {"text": "w1 w2", "answer_start": 3}]
    found = read(tmp_path, "a.json", squad(both))
    assert (found.texts, found.pairs, found.labels) == (("q1", "q2"), (CONTEXT, CONTEXT), ANSWERS)
    assert TASK.check(found, ())[0] == found
    none = read(tmp_path, "b.json", squad([], is_impossible=True, plausible_answers=both))
    assert none.labels == ((), ANSWERS[1])
    assert none.labels == (read(tmp_path, "c.json", squad(both, is_impossible=True)).labels)
    assert none.sha256 != found.sha256
    assert read(tmp_path, "a.json", squad(both), labels_wanted=False).labels is None


def test_flat_forms(tmp_path: Path) -> None:
    lines = "\n".join(map(json.dumps, FLAT))
    wanted = read(tmp_path, "a.jsonl", lines)
    assert (wanted.texts, wanted.pairs, wanted.labels) == (("q1", "q2"), (CONTEXT, CONTEXT), ANSWERS)
    cells = [",".join((row["question"], CONTEXT, quoted(json.dumps(row["answers"])))) for row in FLAT]
    same = [
        read(tmp_path, "b.csv", "\n".join(["question,context,answers", *cells])),
        read(tmp_path, "c.json", lines),
        read(tmp_path, "d.json", json.dumps(FLAT)),
    ]
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame(FLAT).to_parquet(tmp_path / "e.parquet")
    same.append(TASK.read(tmp_path / "e.parquet", columns=Columns()))
    for found in same:
        assert (found.labels, found.sha256) == (wanted.labels, wanted.sha256)


def test_one_answer_beside_its_start(tmp_path: Path) -> None:
    content = f"question,passage,answer,answer_start\nq1,{CONTEXT},w1,3\nq2,{CONTEXT},,\nq3,{CONTEXT},w5,15.0\n"
    found = read(tmp_path, "a.csv", content)
    assert found.labels == ((Answer("w1", 3),), (), (Answer("w5", 15),))
    named = Columns(text="x", text_pair="y", label="z")
    found = read(tmp_path, "b.jsonl", json.dumps({"x": "q", "y": CONTEXT, "z": "w1", "start": 3}), named)
    assert (found.texts, found.labels) == (("q",), ((Answer("w1", 3),),))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "question,answer,answer_start\nq,w1,3\n", "usual name for the context.*--text-pair-column"),
        ("a.csv", "context,answer,answer_start\nw1,w1,0\n", "usual name for the question.*--text-column"),
        ("a.csv", "question,context,answer\nq,w1,w1\n", "row 1 of .*answer_start"),
        ("a.csv", "question,context,answer,answer_start\nq,w1,w1,x\n", "row 1 of .*'x'"),
        ("a.csv", "question,context,answer,answer_start\nq,w1,w1,0.5\n", "row 1 of .*'0.5'"),
        ("a.csv", 'question,context,answers\nq,w1,"{x"\n', "answers in JSON"),
        ("a.csv", f"question,context,answers\nq,w1,{'[' * 100_000}\n", "answers in JSON"),
        ("a.csv", "question,context,answer,answer_start\nq,,w1,0\n", "row 1 of .*'context'"),
        ("a.csv", "question,context\n", "holds no rows"),
        ("a.jsonl", '{"question": 3, "context": "w1"}', "row 1 of .*'question' holds int"),
        (
            "a.jsonl",
            '{"question": "q", "context": "w1", "answers": {"text": ["w1", "w1"], "answer_start": [0]}}',
            "a start for each of the 2 answers",
        ),
        ("a.jsonl", '{"question": "q", "context": "w1", "answers": [{"text": 3}]}', "holds int '3'"),
        ("a.json", '{"data": [{"paragraphs": [{"qas": [{"question": "q"}]}]}]}', "KeyError: 'context'"),
        ("a.json", '{"data": [3]}', "lacks a part of SQuAD's form"),
        ("a.json", '{"data": []}', "holds no rows"),
        ("a.json", '{"question": "q"', "line 1"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(InputError, match="to do:") as caught:
        read(tmp_path, name, content)
    assert re.search(message, str(caught.value), re.DOTALL)


def test_check_says_what_does_not_fit() -> None:
    with pytest.raises(InputError, match=r"(?s)row 2 of r: the answer .w2. is not at character 3 .*there is .w1.*at 6"):
        TASK.check(rows([CONTEXT] * 2, [place(CONTEXT, "w1"), [Answer("w2", 3)]]), ())
    with pytest.raises(InputError, match=r"(?s)'x' is not at character -1 .*there is ''.*drop the row"):
        TASK.check(rows([CONTEXT], [[Answer("x", -1)]]), ())
    with pytest.raises(InputError, match="has no answers"):
        TASK.check(rows([CONTEXT], None), ())
    with pytest.raises(InputError, match="has no answers"):
        TASK.check(rows([CONTEXT], [()]), ())
    with pytest.raises(InputError, match="has no contexts"):
        TASK.check(Rows(("q",), None, None, "r", "0"), ())
    assert "only 1 rows" in TASK.check(rows([CONTEXT], [place(CONTEXT, "w1")]), ())[1][0]


def test_good_and_bad_models_separate(checkpoint: Callable[[str], Path]) -> None:
    rng, processor = np.random.default_rng(0), tokenizer(checkpoint("bert"), max_length=24)
    answers = [place(CONTEXT, " ".join(f"w{n + k}" for k in range(3))) for n in rng.integers(50, size=60)]
    data, warnings = TASK.check(rows([CONTEXT] * 60, answers), ())
    assert warnings == ()
    good = outputs_of(data, processor)
    encoded = examples(data, processor)
    bad = TASK.outputs([rng.normal(size=(w.length, 2)) for own in encoded for w in own], encoded)
    assert good.shape == bad.shape == (60, 4)
    assert good.dtype == np.float64
    scores = [TASK.score(outputs, data, (), reference=None) for outputs in (good, bad)]
    assert (scores[0].metric, scores[0].value, scores[0].n) == ("f1", 100.0, 60)
    assert scores[0].others["exact_match"] == 100.0
    assert scores[1].value < 40
    for outputs, score in zip((good, bad), scores, strict=True):
        each = TASK.per_row(outputs, data, (), reference=None)
        assert each is not None
        assert each.mean() == pytest.approx(score.value)
    said, right = TASK.predictions(good, data, ()) or ([], [])
    assert said == right == [own[0].text for own in answers]


def test_an_answer_in_a_later_window(checkpoint: Callable[[str], Path]) -> None:
    processor = tokenizer(checkpoint("bert"), max_length=24)
    data, _ = TASK.check(rows([CONTEXT], [place(CONTEXT, "w50 w51")]), ())
    encoded = examples(data, processor)
    assert 3 <= len(encoded[0]) < 10
    targets = TASK.targets(data, (), encoded)
    assert targets is not None
    assert targets[0].tolist() == [0, 0]
    assert sum(bool(target.any()) for target in targets) >= 1
    (record,) = TASK.decode(outputs_of(data, processor), data, ())
    assert record["answer"] == "w50 w51" == CONTEXT[record["start"] : record["end"]]
    assert record["score"] == 20.0
    assert record["no_answer_score"] == 0.0


def test_no_answer_only_where_the_data_has_such_questions(checkpoint: Callable[[str], Path]) -> None:
    processor = tokenizer(checkpoint("bert"), max_length=24)
    data, _ = TASK.check(rows([CONTEXT] * 2, [(), place(CONTEXT, "w3")]), ())
    outputs = outputs_of(data, processor)
    assert TASK.score(outputs, data, (), reference=None).value == 100.0
    assert TASK.predictions(outputs, data, ()) == (["", "w3"], ["", "w3"])
    first = TASK.decode(outputs, data, ())[0]
    assert (first["answer"], first["start"], first["end"]) == ("", -1, -1)
    assert first["no_answer_score"] > first["score"]
    always = data.take([1, 1])
    assert all((TASK.predictions(outputs, always, ()) or ([], []))[0])
    unlabelled = rows([CONTEXT] * 2, None)
    assert TASK.decode(outputs, unlabelled, ())[0]["answer"]


def test_of_windows_the_best_span_and_the_least_no_answer(checkpoint: Callable[[str], Path]) -> None:
    processor = tokenizer(checkpoint("bert"), max_length=24)
    encoded = examples(rows([CONTEXT], None), processor)
    raw = [np.zeros((window.length, 2)) for window in encoded[0]]
    raw[0][0], raw[1][0], raw[2][0] = 1.0, -2.0, 3.0
    raw[1][8] = 5.0
    (found,) = TASK.outputs(raw, encoded)
    assert found[:2].tolist() == encoded[0][1].arrays["offsets"][8].tolist()
    assert found[2:].tolist() == [10.0, -4.0]


def test_spans_are_in_order_not_too_long_and_within_the_context(checkpoint: Callable[[str], Path]) -> None:
    processor = tokenizer(checkpoint("bert"), max_length=80)
    encoded = examples(rows([CONTEXT], None), processor)
    logits = np.full((encoded[0][0].length, 2), -100.0)
    logits[[1, 20], 0] = 50.0, 9.0  # a token of the question starts best
    logits[[10, 55, 22], 1] = 20.0, 8.0, 5.0  # before the start, 36 tokens long, allowed
    (found,) = TASK.outputs([logits], encoded)
    assert CONTEXT[int(found[0]) : int(found[1])] == "w16 w17 w18"


def test_no_span_at_all(checkpoint: Callable[[str], Path]) -> None:
    processor = tokenizer(checkpoint("bert"))
    data = rows([""], None)
    encoded = examples(data, processor)
    outputs = TASK.outputs([np.ones((encoded[0][0].length, 2))], encoded)
    assert outputs[0, :2].tolist() == [-1, -1]
    assert np.isfinite(outputs).all()
    assert TASK.decode(outputs, data, ())[0]["answer"] == ""


def test_characters_are_the_contexts_own(checkpoint: Callable[[str], Path]) -> None:
    context = "  Ünïcode „w1“ \n 😀 e\u0301 w2 \u00a0  w3, end "
    answers = [place(context, text) for text in ("w2 \u00a0  w3", "Ünïcode", "😀", "end")]
    data, _ = TASK.check(rows([context] * 4, answers), ())
    records = TASK.decode(outputs_of(data, tokenizer(checkpoint("bert"))), data, ())
    for record, (answer,) in zip(records, answers, strict=True):
        assert (record["answer"], record["start"]) == (answer.text, answer.start)
        assert context[record["start"] : record["end"]] == answer.text


def test_white_space_that_a_tokenizer_counts_is_no_part() -> None:
    outputs = np.array([[2.0, 6.0, 1.0, 0.0]])
    (record,) = TASK.decode(outputs, rows(["w1  w2 "], None), ())
    assert (record["answer"], record["start"], record["end"]) == ("w2", 4, 6)


def test_a_question_needs_its_context(checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match="has no context"):
        TASK.encode(tokenizer(checkpoint("bert")), {"text": "w1"})


@pytest.mark.parametrize(
    ("said", "answers", "exact", "overlap"),
    [
        ("The Broncos!", ["broncos"], 1.0, 1.0),
        ("denver broncos", ["x", "the broncos"], 0.0, 2 / 3),
        ("a b b", ["b b c d"], 0.0, 2 * 2 / 6),
        ("theatre", ["atre"], 0.0, 0.0),
        ("U.S.", ["us"], 1.0, 1.0),
        ("x", ["y"], 0.0, 0.0),
        ("", ["y"], 0.0, 0.0),
        ("", [], 1.0, 1.0),
        ("The", [], 1.0, 1.0),
        ("x", [], 0.0, 0.0),
    ],
)
def test_scores_as_squad_defines_them(said: str, answers: list[str], exact: float, overlap: float) -> None:
    right = [Answer(text, 0) for text in answers]
    assert exact_match(said, right) == exact
    assert f1(said, right) == pytest.approx(overlap)


@pytest.mark.real
def test_xquad(shared: Path) -> None:
    data, warnings = TASK.check(TASK.read(shared / "data" / "xquad" / "xquad.en.json", columns=Columns()), ())
    assert (len(data), warnings) == (1190, ())
    processor = tokenizer(shared / "models" / "minilm-banking77", max_length=192)
    data = data.take(range(0, len(data), 5))
    outputs = outputs_of(data, processor)
    assert TASK.score(outputs, data, (), reference=None).value > 98
