"""What checkpoints say of writing: ends, bans, first ids, languages, and what is not followed."""

from __future__ import annotations

from types import SimpleNamespace as Said
from typing import Any

import pytest

from hasten.models.writing import start_of, writing_of
from hasten.records import InputError

WHISPER: dict[str, Any] = {
    "lang_to_id": {"<|en|>": 11, "<|hi|>": 12, "<|de|>": 13}, "task_to_id": {"transcribe": 21, "translate": 22},
    "no_timestamps_token_id": 30, "decoder_start_token_id": 10, "eos_token_id": 9,
}  # fmt: skip


def model(config: dict[str, Any] | None = None, **settings: Any) -> Any:
    usual = {"is_encoder_decoder": True, "model_type": "whisper"}
    return Said(config=Said(**(usual | (config or {}))), generation_config=Said(**settings))


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, (10, 11, 21, 30)),
        ({"language": "hindi"}, (10, 12, 21, 30)),
        ({"language": "<|de|>", "task": "translate"}, (10, 13, 22, 30)),
        ({"language": "Hi"}, (10, 12, 21, 30)),
        ({"forced_decoder_ids": [[1, 13], [2, 22]]}, (10, 13, 22, 30)),
        ({"forced_decoder_ids": [[1, None], [2, 22]]}, (10, 11, 22, 30)),
        ({"forced_decoder_ids": [[1, 13]], "language": "en", "task": "transcribe"}, (10, 11, 21, 30)),
    ],
)
def test_the_language_and_the_task_are_those_of_the_settings(settings: dict[str, Any], wanted: tuple[int, ...]) -> None:
    assert start_of(model(**(WHISPER | settings))) == wanted


def test_a_model_without_languages_takes_the_forced_ids() -> None:
    old = {
        "forced_decoder_ids": [[2, 22], [1, 13], [3, 30]],
        "no_timestamps_token_id": 30,
        "decoder_start_token_id": 10,
    }
    assert start_of(model(**old)) == (10, 13, 22, 30)
    assert start_of(model(no_timestamps_token_id=30, decoder_start_token_id=10)) == (10, 30)


@pytest.mark.parametrize("settings", [{"language": "klingon"}, {"task": "sing"}, {"language": "french"}])
def test_what_the_model_does_not_know_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"generation_config\.json asks for the"):
        writing_of(model(**(WHISPER | settings)))
    alone = {"language": "hindi"} if "language" in settings else {"task": "translate"}
    with pytest.raises(InputError, match="asks for the"):
        writing_of(model(no_timestamps_token_id=30, decoder_start_token_id=10, **alone))


def test_a_guessed_language_is_said() -> None:
    assert any("taken for English" in note for note in writing_of(model(**WHISPER)).notes)
    assert not writing_of(model(**WHISPER, language="en")).notes


def test_tokens_that_are_never_written() -> None:
    found = writing_of(
        model(
            {"model_type": "marian", "bad_words_ids": [[7], [9], [1, 2]]}, eos_token_id=9, suppress_tokens=[5, -1],
            begin_suppress_tokens=[3, 9], decoder_start_token_id=7,
        )
    )  # fmt: skip
    assert (found.never, found.never_first) == ((5, 7), (3, 9))  # an end that is banned by a word list stays an end
    assert any("several tokens" in note for note in found.notes)


def test_settings_that_are_not_followed_are_said() -> None:
    notes = writing_of(model({"model_type": "bart"}, num_beams=4, min_length=0, no_repeat_ngram_size=3)).notes
    assert notes == ("answers are written greedily, without the checkpoint's num_beams 4, no_repeat_ngram_size 3",)
    assert any("forced_bos_token_id" in note for note in writing_of(model({"model_type": "m2m_100"})).notes)
    assert not writing_of(model({"model_type": "m2m_100"}, forced_bos_token_id=3)).notes


def test_the_first_id_falls_back_to_the_beginning_of_a_text() -> None:
    assert start_of(model({"model_type": "bart"}, bos_token_id=2)) == (2,)
    assert start_of(model({"model_type": "bart"}, bos_token_id=2, decoder_start_token_id=4)) == (4,)


def test_an_encoder_of_text_has_an_end_and_one_of_speech_none_in_tokens() -> None:
    assert writing_of(model({"model_type": "bart", "max_position_embeddings": 64})).reads == 64
    assert writing_of(model({"max_position_embeddings": 64}, **WHISPER)).reads is None


@pytest.mark.parametrize(
    "settings",
    [
        {"eos_token_id": "</s>"}, {"eos_token_id": [None]}, {"bad_words_ids": 5}, {"bad_words_ids": [5]},
        {"suppress_tokens": "none"},
    ],
)  # fmt: skip
def test_settings_that_are_no_ids_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"generation_config\.json or config\.json holds something else"):
        writing_of(model({"is_encoder_decoder": False, "model_type": "gpt2"}, **settings))


def test_an_end_of_minus_one_is_none() -> None:
    found = writing_of(model({"is_encoder_decoder": False, "model_type": "gpt2"}, eos_token_id=[-1, 5]))
    assert found.ends == (5,)
