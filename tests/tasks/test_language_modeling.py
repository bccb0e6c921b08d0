"""Language modeling: every token counts once, with enough in front of it, and the scores are what they say."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import language_model, save_tokenizer

from hasten.records import InputError
from hasten.tasks.examples import collate, unbatched
from hasten.tasks.language_modeling import LanguageModeling, perplexity
from hasten.tasks.processor import open_processor
from hasten.tasks.rows import Rows
from hasten.tasks.task import Array
from hasten.tasks.tokenize import Tokenizer
from hasten.tasks.wrappers import NextTokenWrapper

TASK = LanguageModeling()
WINDOW = 16
NAMES = ("input_ids", "attention_mask")
TEXTS = ("w1 w2 w3", " ".join(f"w{(7 * i) % 60}" for i in range(53)))


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    save_tokenizer(tmp_path)
    found = open_processor({"tokenizer.json": (tmp_path / "tokenizer.json").read_bytes()}, max_length=WINDOW)
    assert isinstance(found, Tokenizer)
    return found


def rows(*texts: str) -> Rows:
    return Rows(texts, None, None, source="d", sha256="")


def outputs_of(model: NextTokenWrapper, tokenizer: Tokenizer) -> tuple[Array, float, int]:
    """The task's outputs of both texts; and by hand what the model says of every word, and how many words these are."""
    encoded = [TASK.encode(tokenizer, item) for item in rows(*TEXTS).items()]
    examples = [example for row in encoded for example in row]
    total, words = 0.0, 0
    with torch.inference_mode():
        batch = {name: torch.from_numpy(array) for name, array in collate(examples, NAMES).items()}
        made = model(**batch).numpy()
        for example in examples:
            ids, fresh = example.arrays["input_ids"], example.arrays["fresh"]
            logs = model.hf(input_ids=torch.from_numpy(ids)[None]).logits[0].log_softmax(dim=-1)
            for place in np.flatnonzero(fresh[1:]) + 1:
                total += float(logs[place - 1, ids[place]])
                words += 1
    return TASK.outputs(unbatched([made], examples), encoded), total, words


def test_every_word_counts_once_behind_half_a_window(tokenizer: Tokenizer) -> None:
    short, long = (TASK.encode(tokenizer, item) for item in rows(*TEXTS).items())
    assert len(short) == 1
    assert [int(example.arrays["fresh"].sum()) for example in short] == [3]
    assert sum(int(example.arrays["fresh"].sum()) for example in long) == 53
    for example in long:
        assert example.length <= WINDOW
    for example in long[1:]:
        assert int(np.flatnonzero(example.arrays["fresh"])[0]) >= WINDOW // 2


def test_scores_are_those_of_the_models_own_probabilities(tokenizer: Tokenizer) -> None:
    model = NextTokenWrapper(language_model("gpt2")).eval()
    outputs, total, words = outputs_of(model, tokenizer)
    assert words == 56
    assert outputs[:, 1].tolist() == [3, 53]
    assert perplexity(outputs) == pytest.approx(math.exp(-total / words), rel=1e-4)
    found = TASK.score(outputs, rows(*TEXTS), (), reference=None)
    assert (found.metric, found.value) == ("perplexity kept", 100.0)
    size = sum(len(text.encode()) for text in TEXTS)
    assert found.others["bits_per_byte"] == pytest.approx(-total / math.log(2) / size, rel=1e-4)
    assert found.others["perplexity"] == pytest.approx(perplexity(outputs))
    assert (found.others["agreement"], found.others["tokens"]) == (100.0, 56.0)


def test_a_model_that_foresees_less_keeps_less() -> None:
    good = np.array([[-4.0, 4.0, 7, 8, 9, 10], [-2.0, 2.0, 5, 6, 0, 0]])
    bad = good.copy()
    bad[:, 0] *= 2.0
    bad[0, 2] = 1
    found = TASK.score(bad, rows("a b c d", "e f"), (), reference=good)
    assert found.value == pytest.approx(100.0 * math.exp(1.0) / math.exp(2.0))
    assert found.others["agreement"] == pytest.approx(100.0 * 5 / 6), "what fills a row is no token"
    assert TASK.score(good, rows("a b c d", "e f"), (), reference=good).value == 100.0


def test_texts_of_single_words_are_nothing_to_foresee() -> None:
    with pytest.raises(InputError, match="has two words"):
        TASK.check(rows("one", "two"), ())
