"""Rows of texts to write from: the usual columns, several references, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hasten.records import Columns, InputError
from hasten.tasks.reference_rows import read_documents, read_prompts, read_translations, references_of


def saved(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_prompts_with_and_without_completions(tmp_path: Path) -> None:
    found = read_prompts(saved(tmp_path, {"prompt": "a", "completion": "b"}), columns=Columns())
    assert (found.texts, found.labels) == (("a",), (("b",),))
    found = read_prompts(saved(tmp_path, {"prompt": "a"}), columns=Columns())
    assert found.labels is None
    found = read_prompts(saved(tmp_path, {"prompt": "a", "completion": ""}), columns=Columns(), labels_wanted=False)
    assert found.labels is None


@pytest.mark.parametrize(
    ("text", "label"),
    [("document", "summary"), ("article", "highlights"), ("dialogue", "summary"), ("Document", " Summary")],
)
def test_documents_in_the_usual_columns(text: str, label: str, tmp_path: Path) -> None:
    found = read_documents(saved(tmp_path, {"id": 1, text: "long", label: "short"}), columns=Columns())
    assert (found.texts, found.labels) == (("long",), (("short",),))


def test_translations_by_language_or_by_column(tmp_path: Path) -> None:
    nested = saved(tmp_path, {"translation": {"en": "cat", "de": "Katze"}})
    found = read_translations(nested, columns=Columns())
    assert (found.texts, found.labels) == (("cat",), (("Katze",),))
    found = read_translations(nested, columns=Columns(text="de"))
    assert (found.texts, found.labels) == (("Katze",), (("cat",),))
    found = read_translations(saved(tmp_path, {"source": "cat", "target": "Katze"}), columns=Columns())
    assert (found.texts, found.labels) == (("cat",), (("Katze",),))
    csv = tmp_path / "rows.csv"
    csv.write_text('translation\n"{""en"": ""cat"", ""de"": ""Katze""}"\n')
    assert read_translations(csv, columns=Columns()).texts == ("cat",)


def test_several_references(tmp_path: Path) -> None:
    path = saved(tmp_path, {"source": "a", "target": ["b", "c"]}, {"source": "d", "target": '["e"]'},
                 {"source": "f", "target": "[sic] g"})  # fmt: skip
    assert read_translations(path, columns=Columns()).labels == (("b", "c"), ("e",), ("[sic] g",))


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([{"prompt": " "}], Columns(), "a text in every row"),
        ([{"prompt": 3}], Columns(), "int '3'"),
        ([{"prompt": "a", "completion": None}], Columns(), "holds nothing"),
        ([{"prompt": "a"}], Columns(text="promt"), "did you mean --text-column prompt"),
        ([{"prompt": "a"}], Columns(label="nothing"), "no column 'nothing'"),
        ([{"prompt": "a"}], Columns(text_pair="b"), "--text-pair-column"),
        ([{"x": "a", "y": "b"}], Columns(), "none has a usual name"),
    ],
)
def test_what_is_refused(rows: list[dict[str, Any]], columns: Columns, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_prompts(saved(tmp_path, *rows), columns=columns)


@pytest.mark.parametrize("both", ["cat", {"en": "cat"}, None])
def test_translations_that_are_no_pairs(both: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two texts by language"):
        read_translations(saved(tmp_path, {"translation": both}), columns=Columns())


def test_three_languages_must_be_named(tmp_path: Path) -> None:
    path = saved(tmp_path, {"translation": {"en": "a", "de": "b", "fr": "c"}})
    with pytest.raises(InputError, match="--label-column"):
        read_translations(path, columns=Columns())
    assert read_translations(path, columns=Columns(text="fr", label="de")).labels == (("b",),)


@pytest.mark.parametrize("about", ["input", "context"])
def test_instructions_come_with_what_they_are_about(tmp_path: Path, about: str) -> None:
    rows = [
        {"instruction": "sum up", about: "a text", "output": "short"},
        {"instruction": "sing", about: "", "output": "la"},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    found = read_prompts(tmp_path / "rows.jsonl", columns=Columns())
    assert found.texts == ("sum up\n\na text", "sing")
    assert found.labels == (("short",), ("la",))
    assert read_prompts(tmp_path / "rows.jsonl", columns=Columns(text="instruction")).texts == ("sum up", "sing")


def test_a_reference_of_brackets_is_a_text() -> None:
    deep = "[" * 100_000
    assert references_of(deep, where="row 1") == (deep,)
