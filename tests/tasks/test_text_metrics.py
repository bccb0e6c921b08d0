"""Scores of texts against references: known values, ends of the scale, corpus and mean."""

from __future__ import annotations

import numpy as np
import pytest

from hasten.tasks.text_metrics import BLEU_AND_CHRF, ROUGE, WORD_ERRORS, heard

SAID = ["the cat sat on the mat", "a dog barked at night", "it rained all day long"]
KNOWN = [("the cat sat on the mat",), ("the dog barked all night",), ("it snowed",)]


@pytest.mark.parametrize("metric", [ROUGE, BLEU_AND_CHRF, WORD_ERRORS], ids=lambda m: m.name)
def test_the_same_text_is_worth_all_and_another_little(metric) -> None:  # type: ignore[no-untyped-def]
    texts = [known[0] for known in KNOWN[:2]] * 3
    best = metric.score(metric.measure(texts, [(t,) for t in texts]))
    worst = metric.score(metric.measure(["zzz"] * 6, [(t,) for t in texts]))
    assert best[metric.name] == pytest.approx(100.0)
    assert worst[metric.name] < 5.0


def test_bleu_is_sacrebleus_corpus_score_and_no_mean() -> None:
    from sacrebleu.metrics import BLEU

    rows = BLEU_AND_CHRF.measure(SAID, KNOWN)
    wanted = BLEU().corpus_score(SAID, [[known[0] for known in KNOWN]]).score
    assert BLEU_AND_CHRF.score(rows)["bleu"] == pytest.approx(wanted)
    single = [BLEU_AND_CHRF.score(rows[i : i + 1])["bleu"] for i in range(3)]
    assert abs(np.mean(single) - wanted) > 1.0
    assert not BLEU_AND_CHRF.mean


def test_word_errors_are_summed_over_all_texts() -> None:
    rows = WORD_ERRORS.measure(["a b c d", "x"], [("a b c d",), ("y",)])
    found = WORD_ERRORS.score(rows)
    assert found["wer"] == pytest.approx(20.0)  # one of five words; a mean of rows would say 50
    assert found["word_accuracy"] == pytest.approx(80.0)


def test_case_and_punctuation_are_not_heard() -> None:
    assert heard("It's  LATE, isn't it?") == "it's late isn't it"
    found = WORD_ERRORS.score(WORD_ERRORS.measure(["hello world"], [("Hello, world!",)]))
    assert found["wer"] == 0.0
    assert found["wer_verbatim"] == 100.0


def test_nothing_said_and_nothing_to_be_heard_can_be_scored() -> None:
    found = WORD_ERRORS.score(WORD_ERRORS.measure(["", "a"], [("a b",), ("...",)]))
    assert np.isfinite(list(found.values())).all()
    assert found["wer"] > 0
    assert ROUGE.measure([""], [("a",)])[0, 0] == 0.0


def test_the_best_of_several_references_counts() -> None:
    rows = ROUGE.measure(["w1 w2 w3"], [("w9 w8", "w1 w2 w3")])
    assert ROUGE.score(rows)["rouge_l"] == pytest.approx(100.0)
    assert ROUGE.score(rows)["exact_match"] == 100.0
