"""Columns: the forms of GLUE's tasks are understood without a flag."""

from __future__ import annotations

import pytest

from hasten.records import Columns, InputError
from hasten.tasks.columns import one_column, resolve_columns


@pytest.mark.parametrize(
    ("names", "text", "pair", "label"),
    [
        ("sentence label idx", "sentence", None, "label"),  # CoLA, SST-2
        ("sentence1 sentence2 label idx", "sentence1", "sentence2", "label"),  # MRPC, RTE, WNLI, STS-B
        ("index genre sentence1 sentence2 score", "sentence1", "sentence2", "score"),  # STS-B as published
        ("question1 question2 label idx", "question1", "question2", "label"),  # QQP
        ("premise hypothesis label idx", "premise", "hypothesis", "label"),  # MNLI
        ("question sentence label idx", "question", "sentence", "label"),  # QNLI
        ("Question Sentence Label", "Question", "Sentence", "Label"),
        ("question label", "question", None, "label"),
        ("quality text category", "text", None, "category"),
    ],
)
def test_glue(names: str, text: str, pair: str | None, label: str) -> None:
    assert resolve_columns(names.split(), Columns(), source="r") == Columns(text, pair, label)


@pytest.mark.parametrize(
    ("names", "text", "pair", "label"),
    [
        ("Quality,#1 ID,#2 ID,#1 String,#2 String", "#1 String", "#2 String", "Quality"),  # MRPC
        ("id,qid1,qid2,question1,question2,is_duplicate", "question1", "question2", "is_duplicate"),  # QQP
        (
            "index,promptID,pairID,genre,sentence1_binary_parse,sentence2_binary_parse,sentence1_parse,"
            "sentence2_parse,sentence1,sentence2,label1,gold_label", "sentence1", "sentence2", "gold_label",
        ),  # MNLI, SNLI
        (
            "index,genre,filename,year,old_index,source1,source2,sentence1,sentence2,score", "sentence1", "sentence2",
            "score",
        ),  # STS-B
        ("source,label,mark,sentence", "sentence", None, "label"),  # CoLA, which has no header of its own
    ],
)  # fmt: skip
def test_glue_as_it_was_published(names: str, text: str, pair: str | None, label: str) -> None:
    assert resolve_columns(names.split(","), Columns(), source="r") == Columns(text, pair, label)


def test_what_the_user_names_wins() -> None:
    names = ("question", "sentence", "label")
    assert resolve_columns(names, Columns(text="sentence"), source="r") == Columns("sentence", None, "label")
    assert resolve_columns(names, Columns(text_pair="question"), source="r") == Columns("sentence", "question", "label")


def test_one_column() -> None:
    usual = ("tags", "labels")
    assert one_column(("a", "labels"), None, usual=usual, flag="--x", source="r") == "labels"
    assert one_column(("labels", "tags"), None, usual=usual, flag="--x", source="r") == "tags"
    assert one_column(("a", "tags"), "a", usual=usual, flag="--x", source="r") == "a"
    assert one_column(("a",), None, usual=usual, flag="--x", source="r") is None
    with pytest.raises(InputError, match="no column 'tag'"):
        one_column(("a", "tags"), "tag", usual=usual, flag="--x", source="r")
    with pytest.raises(InputError, match="--x"):
        one_column(("labels", "Labels"), None, usual=usual, flag="--x", source="r")
