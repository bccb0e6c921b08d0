"""Marian's two sentencepiece models and one vocabulary, against transformers' own slow tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hasten.models.marian_tokens import is_marian, marian_files
from hasten.records import InputError
from hasten.tasks.tokenize import Tokenizer

sentencepiece = pytest.importorskip("sentencepiece")
ENGLISH = ["the cat sat on the mat", "a dog barked at night", "it rained all day long", "cats and dogs and mats"] * 8
GERMAN = ["die katze sa\u00df auf der matte", "ein hund bellte nachts", "es regnete den ganzen tag", "hunde"] * 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("marian")
    pieces: list[str] = []
    for name, lines in (("source", ENGLISH), ("target", GERMAN)):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_prefix=str(where / name), vocab_size=48, minloglevel=2,
            num_threads=1, hard_vocab_limit=False,
        )  # fmt: skip
        (where / f"{name}.model").rename(where / f"{name}.spm")
        (where / f"{name}.vocab").unlink()
        read = sentencepiece.SentencePieceProcessor(model_file=str(where / f"{name}.spm"))
        pieces += [read.id_to_piece(i) for i in range(3, read.get_piece_size())]
    names = ["</s>", "<unk>", ">>deu<<", *dict.fromkeys(reversed(pieces)), "<pad>"]
    (where / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(names)}))
    (where / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 32}))
    return where


def opened(folder: Path) -> Tokenizer:
    files, limit = marian_files(folder)
    return Tokenizer(files["tokenizer.json"].decode(), max_length=limit)


@pytest.mark.parametrize(
    "text",
    [
        *ENGLISH[:4],
        "the dog's night  rained ",
        "cats \u4eca\u65e5 sat",
        "\uff43\uff41\uff54",
        ">>deu<< the cat sat",
        "x",
    ],
)
def test_texts_are_cut_as_transformers_cuts_them(folder: Path, text: str) -> None:
    from transformers import MarianTokenizer

    theirs = MarianTokenizer(
        str(folder / "source.spm"), str(folder / "target.spm"), str(folder / "vocab.json"), model_max_length=32
    )
    assert opened(folder).encode(text).arrays["input_ids"].tolist() == theirs(text)["input_ids"]


def test_what_is_written_is_read_in_the_other_language(folder: Path) -> None:
    ids = json.loads((folder / "vocab.json").read_text())
    target = sentencepiece.SentencePieceProcessor(model_file=str(folder / "target.spm"))
    for line in GERMAN[:4]:
        said = [ids[piece] for piece in target.encode(line, out_type=str)]
        assert opened(folder).text([ids["<pad>"], *said, ids["</s>"]]) == line


def test_the_limit_and_what_is_refused(folder: Path, tmp_path: Path) -> None:
    assert is_marian(folder)
    assert not is_marian(tmp_path)
    long = opened(folder).encode(" ".join(ENGLISH))
    assert (long.length, long.truncated) == (32, True)
    for name, content in (
        ("source.spm", b"\x0a\xff"),
        ("vocab.json", b'{"</s>": 0, "<unk>": 2}'),
        ("vocab.json", b"{"),
    ):
        for path in folder.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="Marian"):
            marian_files(tmp_path)
