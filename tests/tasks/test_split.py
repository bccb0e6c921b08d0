"""Splits: disjoint, seeded, stratified, and blind to how a repeated text is written."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.records import InputError
from hasten.tasks.rows import Rows
from hasten.tasks.split import Splits, split_rows, splits_from_files

TASK = "text-classification"


def make_rows(texts: list[str], labels: list[str] | None = None, source: str = "rows.csv") -> Rows:
    return Rows(tuple(texts), None, None if labels is None else tuple(labels), source, "0" * 64)


def key(text: str) -> str:
    return " ".join(text.split()).casefold()


def parts(splits: Splits) -> list[tuple[int, ...]]:
    return [splits.calibration, splits.selection, splits.test]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text(alphabet="abc XY\t", min_size=1, max_size=5), min_size=1, max_size=80),
    st.integers(0, 5),
    st.integers(1, 4),
)
def test_disjoint_whatever_the_rows(texts: list[str], seed: int, classes: int) -> None:
    rows = make_rows(texts, [str(i % classes) for i in range(len(texts))])
    unique = {key(t) for t in texts}
    try:
        splits = split_rows(rows, seed=seed, task=TASK)
    except InputError:
        assert len(unique) < 6
        return
    keys = [{key(texts[i]) for i in part} for part in parts(splits)]
    assert all(part for part in parts(splits))
    assert sum(map(len, parts(splits))) == len(unique) == len(set().union(*keys))
    assert splits.facts.duplicate_rows == len(texts) - len(unique)
    assert parts(split_rows(rows, seed=seed, task=TASK)) == parts(splits)


def test_stratified_and_sized() -> None:
    texts = [f"t{i}" for i in range(1000)]
    rows = make_rows(texts, ["rare" if i % 10 == 0 else "common" for i in range(1000)])
    splits = split_rows(rows, seed=0, task=TASK)
    assert [len(part) for part in parts(splits)] == [200, 400, 400]
    for part in parts(splits):
        counts = Counter(str((rows.labels or ())[i]) for i in part)
        assert abs(counts["rare"] / len(part) - 0.1) < 0.01
    assert "stratified" in splits.facts.how
    assert parts(split_rows(rows, seed=1, task=TASK)) != parts(splits)


def test_what_is_not_needed_to_judge_is_there_to_learn_from() -> None:
    splits = split_rows(make_rows([f"t{i}" for i in range(5000)]), seed=0, task="feature-extraction")
    assert [len(part) for part in parts(splits)] == [1000, 2000, 2000]
    splits = split_rows(make_rows([f"t{i}" for i in range(10_000)]), seed=0, task="feature-extraction")
    assert [len(part) for part in parts(splits)] == [6000, 2000, 2000]


def test_three_files_keep_their_rows() -> None:
    a, b, c = (make_rows([f"{n}{i}" for i in range(3)], ["x", "y", "x"], source=n) for n in "abc")
    joined, splits = splits_from_files(a, b, c)
    assert [set(joined.take(part).texts) for part in parts(splits)] == [set(a.texts), set(b.texts), set(c.texts)]
    assert (splits.notes, splits.facts.duplicate_rows) == ((), 0)
    with pytest.raises(InputError, match="others have none"):
        splits_from_files(a, b, make_rows(["z"], source="c"))


def test_a_text_in_two_files_stays_in_the_later() -> None:
    a, b = make_rows(["a0", "x", "y"], source="a"), make_rows(["b0", "X ", "z"], source="b")
    c = make_rows(["c0", "x", " Z", "x"], source="c")
    joined, splits = splits_from_files(a, b, c)
    assert [set(joined.take(part).texts) for part in parts(splits)] == [{"a0", "y"}, {"b0"}, {"c0", "x", " Z"}]
    assert (splits.facts.duplicate_rows, len(splits.test)) == (3, 4)
    assert splits.notes == (
        "1 of 3 rows of a are left out: their texts are in b or c too",
        "2 of 3 rows of b are left out: their texts are in c too",
    )
    with pytest.raises(InputError, match="every text of b is in c too"):
        splits_from_files(a, b, make_rows(["Z", "x", "b0"], source="c"))
