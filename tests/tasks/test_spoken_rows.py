"""What is said in rows of prompts and of conversations."""

from __future__ import annotations

from typing import Any

import pytest

from hasten.tasks.spoken_rows import Talk, spoken_in
from hasten.tasks.tables import Table


def of(row: dict[str, Any]) -> tuple[list[str], list[Talk]] | None:
    found = spoken_in(Table(tuple(row), [row]))
    return None if found is None else (found.texts, found.talks)


def talk(*said: str) -> Talk:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)]


@pytest.mark.parametrize(
    ("row", "texts"),
    [
        ({"prompt": "a", "completion": "b"}, ["a", "b", "a b"]),
        ({"Prompt": "a ", "Response": " b"}, ["a ", " b", "a b"]),
        ({"prompt": "a", "references": ["b", "c"]}, ["a", "b", "c", "a b"]),
        ({"prompt": "a", "references": '["b", "c"]'}, ["a", "b", "c", "a b"]),
        ({"prompt": "[a", "completion": None, "score": 3}, ["[a"]),
        ({"instruction": "a", "input": "", "output": "b"}, ["a", "", "b", "a b"]),
    ],
)
def test_prompts(row: dict[str, Any], texts: list[str]) -> None:
    assert of(row) == (texts, [])


@pytest.mark.parametrize("row", [{"text": "a", "label": 1}, {"question": "a", "answer": "b"}, {"premise": "a"}])
def test_other_tables_are_none(row: dict[str, Any]) -> None:
    assert of(row) is None


def test_conversations() -> None:
    assert of({"messages": talk("a", "b")}) == (["a", "b"], [talk("a", "b")])
    shared = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    assert of({"conversations": shared}) == (["a", "b"], [talk("a", "b")])
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}]
    assert of({"messages": parts}) == (["a"], [talk("a")])


def test_answers_in_columns_of_their_own_go_on_with_the_conversation() -> None:
    own = [{"role": "assistant", "content": text} for text in ("b", "c")]
    found = of({"prompt": talk("a"), "chosen": own[:1], "rejected": own[1:]})
    assert found == (["a", "b", "c", "a b", "b c"], [talk("a", "b"), talk("a", "c")])
