"""Rows of multiple choice: whose answer is right in each of the usual forms, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hasten.records import Columns, InputError
from hasten.tasks.multiple_choice import MultipleChoice

PIQA = {"goal": "q", "sol1": "a", "sol2": "b"}


def read(folder: Path, *rows: dict[str, Any], **wanted: bool) -> Any:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return MultipleChoice().read(path, columns=Columns(), **wanted)


@pytest.mark.parametrize(("said", "right"), [(0, 0), ("1", 1), (1.0, 1), ("B", 1), ("a", 0), ("b", 1)])
def test_numbers_letters_and_texts_name_the_right_choice(said: Any, right: int, tmp_path: Path) -> None:
    assert read(tmp_path, {**PIQA, "label": said}).labels == (right,)


@pytest.mark.parametrize(
    ("names", "said", "right"), [(["A", "B", "C"], "B", 1), (["1", "2", "3"], "1", 0), (["1", "2", "3"], "3", 2)]
)
def test_choices_that_have_names_are_called_by_them(names: list[str], said: str, right: int, tmp_path: Path) -> None:
    """A part of ARC counts its choices from 1."""
    choices = {"text": ["x", "y", "z"], "label": names}
    assert read(tmp_path, {"question": "q", "choices": choices, "answerKey": said}).labels == (right,)


@pytest.mark.parametrize("said", ["²", "ß", "٣", "2", "-1", None, 0.5, [0], "x" * 100_000])
def test_what_names_no_choice_is_said_shortly(said: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"row 1 of .* is right\n  expected: 0 to 1") as found:
        read(tmp_path, {**PIQA, "label": said})
    assert len(str(found.value)) < 500


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**PIQA, "goal": {"a": 1}, "label": 0}, "'goal' holds dict"),
        ({**PIQA, "goal": None, "label": 0}, "'goal' holds nothing"),
        ({"question": "q", "choices": {"text": ["x", "y"], "label": ["1"]}, "label": 0}, "calls its 2 choices"),
        ({"question": "q", "choices": ["x"], "label": 0}, "has the choices"),
    ],
)
def test_rows_that_are_refused(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        read(tmp_path, row)


def test_a_table_without_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("goal,sol1,sol2,label\n")
    with pytest.raises(InputError, match="holds no rows"):
        MultipleChoice().read(path, columns=Columns())


@pytest.mark.parametrize("choices", ["w3", "", "[]", '["w3"]', "[1, 2]", '["w3", " "]', "{}", "null"])
def test_rows_that_are_predicted_are_looked_at_as_well(choices: str) -> None:
    with pytest.raises(InputError, match="the question 'w1 w2' has the choices"):
        MultipleChoice().encode(None, {"text": "w1 w2", "text_pair": choices})
