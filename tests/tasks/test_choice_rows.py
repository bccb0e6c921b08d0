"""Multiple choice: the usual columns, which choice is right in each of them, and what likelihoods decide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.records import Columns, InputError
from hasten.tasks.examples import Example
from hasten.tasks.multiple_choice import MultipleChoice
from hasten.tasks.rows import Rows

TASK = MultipleChoice()


def read(folder: Path, *rows: dict[str, Any], **named: str) -> Rows:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TASK.read(path, columns=Columns(**named))


FORMS: dict[str, dict[str, Any]] = {
    "PIQA": {"goal": "q", "sol1": "one", "sol2": "two", "label": 1},
    "HellaSwag": {"ctx": "q", "endings": ["one", "two", "three", "four"], "label": "1"},
    "ARC by letter": {"question": "q", "choices": {"text": ["one", "two"], "label": ["A", "B"]}, "answerKey": "B"},
    "ARC by number": {"question": "q", "choices": {"text": ["one", "two"], "label": ["1", "2"]}, "answerKey": "2"},
    "OpenBookQA": {"question_stem": "q", "choices": {"text": ["one", "two"], "label": ["A", "B"]}, "answerKey": "B"},
    "COPA": {"premise": "q.", "question": "effect", "choice1": "One", "choice2": "Two", "label": 1},
    "Winogrande": {"qID": "3", "sentence": "q", "option1": "one", "option2": "two", "answer": "2"},
    "options from 0": {"sentence": "q", "option1": "one", "option2": "two", "label": 1},
    "a list and its text": {"prompt": "q", "choices": ["one", "two"], "answer": "two"},
    "a list as JSON": {"text": "q", "options": '["one", "two"]', "gold": "b"},
}


@pytest.mark.parametrize("name", FORMS)
def test_the_usual_columns(name: str, tmp_path: Path) -> None:
    found = read(tmp_path, FORMS[name])
    assert found.texts == ("q therefore" if name == "COPA" else "q",)
    assert found.pairs is not None
    assert json.loads(found.pairs[0])[:2] == ["one", "two"]
    assert found.labels == (1,), name


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"goal": "q", "sol1": "one", "sol2": "two", "label": 2}, "says that '2' is right"),
        ({"goal": "q", "sol1": "one", "sol2": "two"}, "none says which choice is right"),
        ({"goal": "q", "choices": ["one"], "label": 0}, "has the choices"),
        ({"goal": "q", "choices": "one, two", "label": 0}, "has the choices"),
        ({"sum": "q", "choices": ["one", "two"], "label": 0}, "none holds the question"),
        ({"premise": "it rained", "question": "what then", "choice1": "wet", "choice2": "dry", "label": 0}, "premise"),
        ({"sentence": "q _ r", "option1": "one", "option2": "two", "answer": "0"}, "says that '0' is right"),
        ({"sentence": "q _ r", "option1": "one", "option2": "two", "answer": ""}, "says that '' is right"),
        ({"premise": "it rained", "question": ["effect"], "choice1": "wet", "choice2": "dry", "label": 0}, "premise"),
        ({"question": "q", "choices": "[" * 100_000, "label": 0}, "has the choices"),
        ({"article": "long", "question": "who", "options": ["one", "two"], "answer": "A"}, "to be read before it"),
    ],
)
def test_what_cannot_be_known_is_asked_for(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, row)


def test_a_column_that_is_named_is_enough(tmp_path: Path) -> None:
    row = {"premise": "it rained", "question": "effect", "choice1": "wet", "choice2": "dry", "label": 0}
    assert read(tmp_path, row, text="premise").texts == ("it rained",)


@pytest.mark.parametrize(
    ("asked", "text"), [("cause", "The man lost his balance because"), ("effect", "The man lost his balance therefore")]
)
def test_causes_and_effects_are_one_sentence(asked: str, text: str, tmp_path: Path) -> None:
    found = read(
        tmp_path,
        {"premise": "The man lost his balance. ", "choice1": "He fell.", "choice2": "It rained.", "question": asked,
         "label": 0, "idx": 3},
    )  # fmt: skip
    assert found.texts == (text,)
    assert found.pairs == ('["he fell.", "it rained."]',)


class Heard:
    """A processor that says what it was given, a number a character."""

    def __init__(self) -> None:
        self.given: list[tuple[str, str]] = []

    def continued(self, text: str, choice: str) -> Example:
        self.given.append((text, choice))
        ids = np.arange(len(text + choice))
        return Example({"input_ids": ids, "fresh": (ids >= len(text)).astype(np.int64)})


@pytest.mark.parametrize(
    ("text", "given", "sizes"),
    [
        ("The _ is big.", [("The cup", " is big."), ("The old box", " is big.")], [8, 8]),
        ("Ann's plan worked, so _'s glad", [("Ann's plan worked, so cup", "'s glad"),
                                            ("Ann's plan worked, so old box", "'s glad")], [7, 7]),
        ("What is big: _.", [("What is big: _.", " cup"), ("What is big: _.", " old box")], [3, 7]),
        ("_ or _ it is", [("_ or _ it is", " cup"), ("_ or _ it is", " old box")], [3, 7]),
        ("my_file is", [("my_file is", " cup"), ("my_file is", " old box")], [3, 7]),
    ],
    ids=["in the middle", "before an s", "at the end", "two", "a name"],
)  # fmt: skip
def test_a_blank_is_filled_and_what_stands_behind_it_is_scored(
    text: str, given: list[tuple[str, str]], sizes: list[int]
) -> None:
    heard = Heard()
    made = TASK.encode(heard, {"text": text, "text_pair": '["cup", "old box"]'})
    assert heard.given == given
    assert [int(example.arrays["choice_bytes"]) for example in made] == sizes


def rows(*right: int) -> Rows:
    pairs = tuple(json.dumps(["a", "long one", "c"]) for _ in right)
    return Rows(("q",) * len(right), pairs, right, source="d", sha256="")


def test_a_good_model_and_a_bad_one_differ() -> None:
    right = (0, 1, 2, 1)
    said = np.full((4, 2, 3), -5.0)
    said[:, 1] = (1.0, 8.0, 1.0)
    good = said.copy()
    for row, number in enumerate(right):
        good[row, 0, number] = -1.0
    bad = said.copy()
    bad[:, 0, 0] = -1.0
    assert TASK.score(good, rows(*right), (), reference=None).value == 100.0
    assert TASK.score(bad, rows(*right), (), reference=None).value == 25.0
    assert TASK.per_row(bad, rows(*right), (), reference=None) is not None
    assert [r["choice"] for r in TASK.decode(good, rows(*right), ())] == list(right)


def test_a_byte_of_a_long_choice_counts_less_and_what_fills_a_row_is_no_choice() -> None:
    outputs = np.array([[[-4.0, -8.0, 0.0], [1.0, 8.0, 0.0]]])
    found = TASK.score(outputs, rows(1), (), reference=None)
    assert (found.value, found.others["accuracy_by_byte"]) == (0.0, 100.0)
