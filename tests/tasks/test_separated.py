"""Fields separated by tabs, with quotes and without: GLUE's files as they were published are read as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from hasten.records import Columns, InputError
from hasten.tasks.rows import Rows, read_rows


def read(folder: Path, content: str, *, name: str = "rows.tsv") -> Rows:
    (folder / name).write_bytes(content.encode())
    return read_rows(folder / name, columns=Columns())


PUBLISHED = {
    "CoLA": (
        "gj04\t1\t\tOur friends won't buy this.\ngj04\t0\t*\t\"So,\" he said.\n",
        ("Our friends won't buy this.", '"So," he said.'), None, ("1", "0"),
    ),
    "MRPC": (
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
        '1\t70\t71\tAmrozi accused his brother , " the witness " .\t" He lied .\r\n'
        '0\t72\t73\t"No , " he said .\tHe said no .\r\n',
        ('Amrozi accused his brother , " the witness " .', '"No , " he said .'), ('" He lied .', "He said no ."),
        ("1", "0"),
    ),
    "QQP": (
        'id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\t"Why" is it?\tWhat "is" it?\t0\n',
        ('"Why" is it?',), ('What "is" it?',), ("0",),
    ),
    "MNLI": (
        "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse"
        "\tsentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label\n"
        "0\t31193\t31193n\tfiction\t( a )\t( b )\t(R a)\t(R b)\tHe\u2028went.\tHe left.\tneutral\tentailment\n",
        ("He\u2028went.",), ("He left.",), ("entailment",),
    ),
    "STS-B": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
        "0\tcaptions\tMSRvid\t2012\t1\tnone\tnone\tA plane.\tAn air plane.\t5.000\n",
        ("A plane.",), ("An air plane.",), ("5.000",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_glue_as_it_was_published(name: str, tmp_path: Path) -> None:
    content, texts, pairs, labels = PUBLISHED[name]
    found = read(tmp_path, content)
    assert (found.texts, found.pairs, found.labels) == (texts, pairs, labels)


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ('text\tlabel\n"a\tb"\tyes\nc\tno\n', ("a\tb", "c")),
        ('text\tlabel\n"say ""a"""\tyes\n"c"\tno\n', ('say "a"', "c")),
        ('text\tlabel\n"a\nb"\tyes\n', ("a\nb",)),
        ('text\tlabel\nsay "a"\tyes\n', ('say "a"',)),
        ('text\tlabel\n"a" b\tyes\n"c"\tno\n', ('"a" b', '"c"')),
    ],
    ids=["a tab within", "doubled", "a break within", "within", "one that is none"],
)
def test_quotes_count_where_they_are_meant(content: str, texts: tuple[str, ...], tmp_path: Path) -> None:
    assert read(tmp_path, content).texts == texts


def test_ragged_rows_are_named_by_their_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 3: 1 fields, the header has 2"):
        read(tmp_path, "text\tlabel\na\tyes\nb\n")


def test_a_quote_that_means_none_does_not_hide_the_ragged_row(tmp_path: Path) -> None:
    lines = ['He said "so\tno\t1', '"So\tyes\t0', "a\tb", "c\td\t1"]
    with pytest.raises(InputError, match="line 4: 2 fields, the header has 3"):
        read(tmp_path, "\n".join(["sentence1\tsentence2\tlabel", *lines]) + "\n")


def test_commas_come_with_quotes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 2"):
        read(tmp_path, 'text,label\n"a" b,yes\n', name="rows.csv")
    with pytest.raises(InputError, match="without a name"):
        read(tmp_path, "a,1,,b\n", name="rows.csv")
