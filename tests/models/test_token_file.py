"""A trimmed vocabulary reads what it was trimmed for as before, and everything else without loss."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import KINDS, opened, sentences, trained

from hasten.models.token_file import TrimmedFile, steps, trimmed, vocabulary
from hasten.records import Rejected

WHOLE = {kind: trained(kind) for kind in KINDS}
OPEN = {kind: opened(content) for kind, content in WHOLE.items()}
ROWS = 2000
EXACT = ("byte-level", "byte-fallback")


def ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text).ids)


def cut(kind: str, texts: list[str], *, needed: tuple[int, ...] = ()) -> TrimmedFile:
    used = {number for text in texts for number in ids(OPEN[kind], text)}
    return trimmed(WHOLE[kind], used=used, needed=needed, rows=ROWS)


SMALL = {kind: cut(kind, sentences(count=6, seed=1)) for kind in KINDS}
SMALL_OPEN = {kind: opened(found.content) for kind, found in SMALL.items()}


def plain(tokenizer: Any, text: str) -> str:
    """There and back, without what is put around a text."""
    return str(tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_the_corpus_is_read_in_the_same_tokens(kind: str, seed: int) -> None:
    texts = sentences(count=8, seed=seed)
    found = cut(kind, texts)
    small = opened(found.content)
    assert len(found.kept) < OPEN[kind].get_vocab_size() == len(OPEN[kind].get_vocab())
    assert small.get_vocab_size() == len(found.kept)
    for text in texts:
        assert [found.kept[number] for number in ids(small, text)] == ids(OPEN[kind], text)
        assert small.encode(text).tokens == OPEN[kind].encode(text).tokens
    for word, number in small.get_vocab().items():
        assert OPEN[kind].id_to_token(found.kept[number]) == word


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_choice_of_texts(kind: str, data: st.DataObject) -> None:
    """Words of the trained kind, put together anew: every one is read as before once it is in the corpus."""
    letters = st.sampled_from([*"karomitensulbé ", "ß", "30", "-", "ver", "lo", "Z", "日"])
    texts = data.draw(st.lists(st.lists(letters, max_size=20).map("".join), min_size=1, max_size=4))
    found = cut(kind, texts)
    small = opened(found.content)
    assert all([found.kept[number] for number in ids(small, text)] == ids(OPEN[kind], text) for text in texts)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_comes_back_from_bytes(text: str) -> None:
    assert plain(SMALL_OPEN["byte-level"], text) == text


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=40) | st.lists(st.sampled_from(sentences(count=40)), max_size=3).map("  ".join))
def test_any_text_comes_back_as_it_did(text: str) -> None:
    """Whatever the whole vocabulary's normalizer does to a text, the trimmed one gives back the same."""
    for kind in EXACT:
        assert plain(SMALL_OPEN[kind], text) == plain(OPEN[kind], text)
        assert "<unk>" not in SMALL_OPEN[kind].encode(text, add_special_tokens=False).tokens or "<unk>" in text


@settings(max_examples=100, deadline=None)
@given(text=st.lists(st.sampled_from([*"karomitensulbé .!?-30", "ß", "日"]), max_size=30).map("".join))
def test_nothing_becomes_unknown(text: str) -> None:
    for kind, unknown in (("wordpiece", "[UNK]"), ("unigram", "<unk>")):
        before, after = (found[kind].encode(text).tokens.count(unknown) for found in (OPEN, SMALL_OPEN))
        assert after <= before


@pytest.mark.parametrize("kind", KINDS)
def test_other_texts_take_more_tokens(kind: str) -> None:
    texts = sentences(count=30)
    before, after = (sum(len(ids(found[kind], text)) for text in texts) for found in (OPEN, SMALL_OPEN))
    assert after > before


@pytest.mark.parametrize("kind", KINDS)
def test_added_tokens_stay_and_placeholders_go(kind: str) -> None:
    words = SMALL_OPEN[kind].get_vocab()
    assert not any("unused" in word or "reserved" in word for word in words)
    kept = [token["content"] for token in SMALL[kind].content["added_tokens"]]
    before = [token["content"] for token in WHOLE[kind]["added_tokens"]]
    assert kept == [word for word in before if "unused" not in word and "reserved" not in word]
    assert all(words[token["content"]] == token["id"] for token in SMALL[kind].content["added_tokens"])


def test_rows_that_only_the_model_means_come_last() -> None:
    number = OPEN["byte-level"].get_vocab_size() + 3
    found = cut("byte-level", ["karo"], needed=(number, 0))
    assert found.kept[-1] == number
    assert opened(found.content).get_vocab_size() == len(found.kept) - 1


def test_placeholders_that_something_needs_stay() -> None:
    number = OPEN["wordpiece"].token_to_id("[unused3]")
    assert number in cut("wordpiece", ["karo"], needed=(number,)).kept
    found = cut("byte-level", ["karo <|reserved_special_token_4|> da"])
    assert "<|reserved_special_token_4|>" in opened(found.content).get_vocab()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_put_around_a_text_follows(kind: str) -> None:
    for pair in (None, "da lo"):
        tokens = [
            t[kind].encode("karo", pair).tokens for t in (OPEN, {kind: opened(cut(kind, ["karo", "da lo"]).content)})
        ]
        assert tokens[0] == tokens[1]


def test_padding_follows() -> None:
    content = SMALL["byte-fallback"].content
    assert content["padding"]["pad_id"] == vocabulary(content)["</s>"]


def test_steps_are_those_of_the_merges() -> None:
    ranks = {("l", "o"): 0, ("e", "r"): 1, ("lo", "w"): 2, ("low", "er"): 3, ("w", "er"): 4}
    assert steps("lower", ranks) == {*"lower", "lo", "er", "low", "lower"}
    assert steps("wer", ranks) == {*"wer", "er", "wer"}
    assert steps("low</w>", {("l", "o"): 0, ("lo", "w</w>"): 1}, suffix="</w>") == {
        "l", "o", "w</w>", "lo", "low</w>",
    }  # fmt: skip


def test_the_worst_piece_stays_for_what_unknown_costs() -> None:
    pieces = WHOLE["unigram"]["model"]["vocab"]
    assert min(score for _, score in SMALL["unigram"].content["model"]["vocab"]) == min(score for _, score in pieces)


def test_merges_may_be_written_with_a_space() -> None:
    content = json.loads(json.dumps(WHOLE["byte-level"]))
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    used = {n for text in sentences(count=6, seed=1) for n in ids(OPEN["byte-level"], text)}
    found = trimmed(content, used=used, needed=(), rows=ROWS)
    assert found.kept == SMALL["byte-level"].kept
    assert [merge.split(" ") for merge in found.content["model"]["merges"]] == [
        list(pair) for pair in SMALL["byte-level"].content["model"]["merges"]
    ]


def test_words_as_a_whole_cannot_go() -> None:
    content = {"model": {"type": "WordLevel", "vocab": {"a": 0, "[UNK]": 1}, "unk_token": "[UNK]"}, "added_tokens": []}
    with pytest.raises(Rejected, match="whole words"):
        trimmed(content, used=(0,), needed=(), rows=2)


def test_a_used_token_needs_a_row() -> None:
    with pytest.raises(Rejected, match=r"use the ids \[9\], and the model has 5 rows"):
        trimmed(WHOLE["byte-level"], used=(1, 9), needed=(), rows=5)
