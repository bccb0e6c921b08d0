"""What the wrappers give: the same for a row alone and among others, in numbers that keep their digits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import DECODERS, language_config, language_model, shaken

from hasten.tasks import wrappers
from hasten.tasks.examples import Example, collate
from hasten.tasks.wrappers import LogitsWrapper, NextTokenWrapper

NAMES = ("input_ids", "attention_mask")
PADDING = 3


def classifier(family: str, *, padding: int | None) -> LogitsWrapper:
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    config = language_config(family)
    config.num_labels, config.pad_token_id = 3, padding
    return LogitsWrapper(shaken(AutoModelForSequenceClassification.from_config(config))).eval()


def example(ids: list[int]) -> Example:
    own = np.array(ids, np.int64)
    return Example({"input_ids": own, "attention_mask": np.ones_like(own)})


@torch.no_grad()
def asked(model: torch.nn.Module, *rows: Example) -> torch.Tensor:
    found: torch.Tensor = model(**{name: torch.from_numpy(array) for name, array in collate(rows, NAMES).items()})
    return found


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text"])
@pytest.mark.parametrize("padding", [None, 0, PADDING])
def test_a_decoder_judges_at_the_last_token_of_each_row(family: str, padding: int | None) -> None:
    model = classifier(family, padding=padding)
    # A text may end in the padding's id (often the end of a text is it), and be full of zeros.
    rows = [example(ids) for ids in ([5, 6, 7, 8, 9], [7, 8], [9, 4, PADDING], [0, 5, 0])]
    together, alone = asked(model, *rows), [asked(model, row) for row in rows]
    for found, wanted, row in zip(together, alone, rows, strict=True):
        own = model.hf(input_ids=torch.from_numpy(row.arrays["input_ids"])[None]).logits
        torch.testing.assert_close(found, wanted[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(wanted, own, atol=1e-5, rtol=1e-4)


def test_ids_keep_their_digits_in_16_bits() -> None:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = NextTokenWrapper(AutoModelForCausalLM.from_config(language_config("llama", vocab_size=1000))).eval()
    with torch.no_grad():
        model.hf.lm_head.weight[997] = 0.0
        row = example([5, 6, 7])
        states = model.hf.model(input_ids=torch.tensor([[5, 6, 7]])).last_hidden_state[0, -1]
        model.hf.lm_head.weight[997] = 10 * states
    assert asked(model.to(torch.bfloat16), row)[0, -1, 1] == 997


@pytest.mark.parametrize("split", [True, False], ids=["head on positions", "rows"])
@pytest.mark.parametrize("family", DECODERS)
def test_logits_that_are_too_many_at_once_come_piecemeal(
    family: str, split: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    capped = {"final_logit_softcapping": 0.5} if family.startswith("gemma") else {}
    model, seen = NextTokenWrapper(language_model(family, **capped)).eval(), list[tuple[int, ...]]()
    head, vocabulary = model.hf.get_output_embeddings(), model.hf.config.vocab_size
    head.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape[:-1])))
    rows = [example(ids) for ids in ([5, 6, 7, 8, 9, 10, 11], [7, 8, 9], [9, 4, PADDING, 6], [6])]
    batch = {name: torch.from_numpy(array) for name, array in collate(rows, NAMES).items()}
    with torch.no_grad():
        logits = model.hf(**batch).logits
        if capped:
            assert logits.abs().max() < 0.5
        following = torch.cat([batch["input_ids"][:, 1:], batch["input_ids"][:, :1]], dim=1)
        wanted = logits.log_softmax(dim=-1).gather(-1, following.unsqueeze(-1))[..., 0]
    whole = asked(model, *rows)
    assert seen[1:] == [(4, 7)], "where all logits are few they are made at once"
    monkeypatch.setattr(wrappers, "MOST_LOGITS_BYTES", 16 * vocabulary * 5)  # a row and a half; a quarter: 5 positions
    if not split:
        monkeypatch.setattr(wrappers, "SPLIT_HEADS", ())
    found = asked(model, *rows)
    assert seen[2:] == ([(5,)] * 5 + [(3,)] if split else [(2, 7)] * 2)
    real = batch["attention_mask"].bool()
    for said in (whole, found):
        torch.testing.assert_close(said[..., 0][real], wanted[real], atol=1e-5, rtol=1e-4)
        assert torch.equal(said[..., 1][real], logits.argmax(dim=-1).float()[real])
