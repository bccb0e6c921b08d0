"""Rows of word tables and heads, and every id that a config names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import SEQ2SEQ, language_model, tiny_config

from hasten.models.token_table import keep_rows, needed_ids, rows_of
from hasten.records import Rejected

KEPT = (0, 1, 3, 4, 5, 9, 20, 21, 40, 65)
FAMILIES = ("llama", "gpt2", "gemma2", "qwen3_moe", "t5", "bart")


def logits(model: Any, rows: list[list[int]]) -> torch.Tensor:
    given = {"input_ids": torch.tensor(rows)}
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = torch.tensor(rows)
    with torch.inference_mode():
        found: torch.Tensor = model(**given).logits
    return found


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_what_stays_are_what_they_were(family: str, tied: bool) -> None:
    model = language_model(family, tie_word_embeddings=tied)
    if family == "bart":
        model.final_logits_bias.copy_(torch.randn(1, 66))
    rows = [[4, 20, 9, 40, 65, 5], [4, 21, 3, 9, 5, 40]]
    whole = logits(model, rows)
    head = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    keep_rows(model, KEPT)
    new = [[KEPT.index(number) for number in row] for row in rows]
    assert torch.allclose(logits(model, new), whole[..., list(KEPT)], atol=1e-6)
    assert rows_of(model) == model.config.vocab_size == len(KEPT)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) is head
    assert (model.config.pad_token_id, model.config.eos_token_id) == (1, 4)
    assert model.generation_config.eos_token_id == 4
    if family in SEQ2SEQ:
        assert model.config.decoder_start_token_id == 1


@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
def test_heads_that_guess_words_lose_rows_and_biases(family: str) -> None:
    from transformers import AutoModelForMaskedLM

    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(tiny_config(family)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias") and weight.shape == (66,):
                weight.copy_(torch.randn(66))
    rows = [[4, 20, 9, 40, 65, 5]]
    whole = logits(model, rows)
    assert needed_ids(model) >= ({0, 1} if family == "roberta" else {1})
    keep_rows(model, KEPT)
    new = [[KEPT.index(number) for number in row] for row in rows]
    assert torch.allclose(logits(model, new), whole[..., list(KEPT)], atol=1e-5)


def test_positions_counted_from_the_padding_need_all_before_it() -> None:
    from transformers import AutoModelForSequenceClassification

    config = tiny_config("roberta")
    config.pad_token_id = 3
    model = AutoModelForSequenceClassification.from_config(config)
    assert needed_ids(model) >= {0, 1, 2, 3}


def test_ids_in_configs_are_found_and_renamed() -> None:
    model = language_model("llama", eos_token_id=[5, 20])
    model.generation_config.suppress_tokens = [9, 30, 40]
    model.generation_config.bad_words_ids = [[9, 20], [30]]
    assert needed_ids(model) == {1, 4, 5, 20}
    keep_rows(model, KEPT)
    assert model.config.eos_token_id == [4, 6]
    assert model.config.bos_token_id == 3
    assert model.generation_config.suppress_tokens == [5, 8]
    assert model.generation_config.bad_words_ids == [[5, 6]]


def test_a_head_of_another_size_is_refused() -> None:
    model = language_model("llama")
    model.lm_head = torch.nn.Linear(32, 70, bias=False)
    with pytest.raises(Rejected, match="the head has 70 rows, and the word table 66"):
        keep_rows(model, KEPT)
