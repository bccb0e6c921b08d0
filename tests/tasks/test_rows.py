"""Reading rows: every ordinary form is understood, every broken one is named with its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hasten.records import Columns, InputError
from hasten.tasks.rows import Rows, read_rows


def rows_of(tmp_path: Path, name: str, content: str | bytes, columns: Columns | None = None) -> Rows:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_rows(path, columns=columns or Columns())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'text,label\n"a, ""b""",yes\n"two\nlines",no\n'),
        ("a.csv", '\ufefftext,label\r\n"a, ""b""",yes\r\n"two\nlines",no\r\n'),
        ("a.tsv", 'text\tlabel\n"a, ""b"""\tyes\n"two\nlines"\tno\n'),
        ("a.jsonl", '{"text": "a, \\"b\\"", "label": "yes"}\n\n{"text": "two\\nlines", "label": "no"}\n'),
        ("a.json", '[{"text": "a, \\"b\\"", "label": "yes"}, {"text": "two\\nlines", "label": "no"}]'),
    ],
)
def test_forms(tmp_path: Path, name: str, content: str) -> None:
    found = rows_of(tmp_path, name, content)
    assert found.texts == ('a, "b"', "two\nlines")
    assert found.labels == ("yes", "no")
    assert found.pairs is None


def test_parquet(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame({"review": ["a", "b"], "sentiment": [1.0, 0.0]}).to_parquet(tmp_path / "a.parquet")
    found = read_rows(tmp_path / "a.parquet", columns=Columns())
    assert (found.texts, found.labels) == (("a", "b"), ("1", "0"))


def test_content_decides_the_hash(tmp_path: Path) -> None:
    a = rows_of(tmp_path, "a.csv", "text,label\nx,1\n")
    b = rows_of(tmp_path, "b.tsv", "text\tlabel\nx\t1\n")
    c = rows_of(tmp_path, "c.csv", "text,label\nx,2\n")
    assert a.sha256 == b.sha256 != c.sha256


@pytest.mark.parametrize(
    ("content", "columns", "text", "label"),
    [
        ("id,review,sentiment\n1,a,2\n", Columns(), "a", "2"),
        ("Text,Category\na,2\n", Columns(), "a", "2"),
        ("x,y1\na,2\n", Columns(text="x", label="y1"), "a", "2"),
        ("only\na\n", Columns(), "a", None),
        ("text,content,label\na,b,1\n", Columns(), "a", "1"),
        ("text,intent,label\na,b,1\n", Columns(label="intent"), "a", "b"),
    ],
)
def test_columns(tmp_path: Path, content: str, columns: Columns, text: str, label: str | None) -> None:
    found = rows_of(tmp_path, "a.csv", content, columns)
    assert found.texts == (text,)
    assert found.labels == (None if label is None else (label,))


def test_pairs(tmp_path: Path) -> None:
    found = rows_of(tmp_path, "a.csv", "sentence1,sentence2,score\na,b,0.5\n")
    assert (found.texts, found.pairs, found.labels) == (("a",), ("b",), ("0.5",))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"\xef\xbb\xbf", "is empty"),
        ("a.json", b'{"data": [{"title": "a"', "cut short"),
        ("a.jsonl", b'{"text": "a"', "expected: one JSON object per line\n"),
        ("a.csv", b"text,label\n", "holds no rows"),
        ("a.csv", b"text,label\na\n", "line 2: 1 fields, the header has 2"),
        ("a.csv", b'text,label\n"a,1\n', "line 2"),
        ("a.csv", b"text,text\na,b\n", "'text' twice"),
        ("a.csv", b"text,\na,b\n", "without a name"),
        ("a.csv", b"\x89PNG\x00\x01", "zero byte"),
        ("a.csv", "text,label\nä,1\n".encode("utf-16"), "zero byte"),
        ("a.csv", "text,label\nb,1\nä,1\n".encode("latin1"), "line 3: byte 0xe4"),
        ("a.csv", b"foo,bar\na,b\n", "--text-column"),
        ("a.csv", b"review,content,label\na,b,1\n", "review, content could all be meant"),
        ("a.csv", b"text,intent,category\na,b,1\n", "--label-column"),
        ("a.csv", b"text,label\n ,1\n\t,2\n", "empty in every row"),
        ("a.csv", b"text,label\na,\n", "row 1"),
        ("a.jsonl", b'{"text": "a"}\n{"text": 3}\n', "row 2"),
        ("a.jsonl", b'{"text": "a"}\n[1]\n', "row 2 is a list"),
        ("a.jsonl", b'{"text": "a"}\n{"text"\n', "line 2"),
        ("a.jsonl", b'{"text": null}\n', "row 1"),
        ("a.jsonl", b'{"text": "a", "label": {"x": 1}}\n', "label"),
        ("a.parquet", b"PAR1 not really", "Parquet"),
        ("a.xlsx", b"PK", ".xlsx"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match="to do:") as caught:
        rows_of(tmp_path, name, content)
    assert message in str(caught.value)


def test_missing_column_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean --text-column body"):
        rows_of(tmp_path, "a.csv", "body,label\na,1\n", Columns(text="boby"))


def test_missing_file_folder_and_huge_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_rows(tmp_path / "none.csv", columns=Columns())
    with pytest.raises(InputError, match="is a folder"):
        read_rows(tmp_path, columns=Columns())
    with pytest.raises(InputError, match="2,000,000 characters"):
        rows_of(tmp_path, "a.jsonl", json.dumps({"text": "x" * 2_000_000}))


def test_unusual_line_ends_stay_within_a_json_line(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a\u2028b\u0085c"}\n{"text": "d"}\n', encoding="utf-8")
    assert read_rows(tmp_path / "rows.jsonl", columns=Columns()).texts == ("a\u2028b\u0085c", "d")


def test_a_named_text_is_not_its_own_pair(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("hypothesis,label\na,x\nb,y\n")
    assert read_rows(tmp_path / "rows.csv", columns=Columns(text="hypothesis")).pairs is None


def test_two_possible_pairs_are_asked_about(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,sentence2,hypothesis\na,b,c\n")
    with pytest.raises(InputError, match="--text-pair-column"):
        read_rows(tmp_path / "rows.csv", columns=Columns())


def test_one_object_over_many_lines_is_not_taken_for_lines(tmp_path: Path) -> None:
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"version": "1.1", "data": [{"text": "a"}]}, indent=1))
    with pytest.raises(InputError, match=r"one JSON object over many lines \(version, data\)"):
        read_rows(path, columns=Columns())
    path.write_text('{"text": "a",\n "label": }\n')
    with pytest.raises(InputError, match="line 1"):
        read_rows(path, columns=Columns())
