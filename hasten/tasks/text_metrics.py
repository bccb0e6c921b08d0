"""How texts that were written are scored against references: ROUGE, BLEU and word errors.

Takes texts and references, gives a row of numbers for each text, and what any choice of such rows amounts to; so a
resampled score is a sum and no second reading. All scores are in points, 100 at best.

Legend: N texts, K numbers of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hasten.records import MissingDependency
from hasten.tasks.task import Array

Texts = Sequence[str]
References = Sequence[Sequence[str]]
_ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_EXTRA = "generation"


@dataclass(frozen=True, slots=True)
class TextMetric:
    """``measure`` gives [N, K] of texts and references, ``score`` the metrics of any such rows by name.

    The first name is the metric; ``mean`` says that it is the mean of the first of the K numbers.
    """

    name: str
    mean: bool
    measure: Callable[[Texts, References], Array]
    score: Callable[[Array], Mapping[str, float]]


def rouge(texts: Texts, references: References) -> Array:
    """[N, 5]: F1 of ROUGE-L, ROUGE-1, ROUGE-2 and ROUGE-Lsum, and whether the text is a reference; stems count as
    words do (Lin 2004, as in the rouge-score package). The best of several references counts."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise MissingDependency("rouge-score", extra=_EXTRA) from error
    scorer = RougeScorer(list(_ROUGE), use_stemmer=True)
    rows = []
    for text, known in zip(texts, references, strict=True):
        best = scorer.score_multi(list(known), text)
        one, two, longest, summary = (100.0 * float(best[name].fmeasure) for name in _ROUGE)
        exact = 100.0 * (_plain(text) in {_plain(reference) for reference in known})
        rows.append((longest, one, two, summary, exact))
    return np.array(rows, dtype=np.float64).reshape(-1, 5)


def _mean_rouge(rows: Array) -> dict[str, float]:
    longest, one, two, summary, exact = rows.mean(axis=0).tolist()
    return {"rouge_l": longest, "rouge_1": one, "rouge_2": two, "rouge_lsum": summary, "exact_match": exact}


def bleu(texts: Texts, references: References) -> Array:
    """[N, 11]: right n-grams of 1 to 4, all n-grams of 1 to 4, the text's and the nearest reference's length (Papineni
    et al. 2002, counted by sacrebleu with its 13a tokens), and the text's own chrF."""
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ImportError as error:
        raise MissingDependency("sacrebleu", extra=_EXTRA) from error
    counter, characters = BLEU(effective_order=True), CHRF()
    rows = []
    for text, known in zip(texts, references, strict=True):
        found = counter.sentence_score(text, list(known))
        chrf = characters.sentence_score(text, list(known)).score
        rows.append((*found.counts, *found.totals, found.sys_len, found.ref_len, chrf))
    return np.array(rows, dtype=np.float64).reshape(-1, 11)


def _corpus_bleu(rows: Array) -> dict[str, float]:
    """BLEU of all texts together; chrF is the mean over texts."""
    from sacrebleu.metrics import BLEU

    sums = [round(x) for x in rows[:, :10].sum(axis=0).tolist()]
    found = BLEU.compute_bleu(sums[:4], sums[4:8], sums[8], sums[9], smooth_method="exp")
    return {"bleu": float(found.score), "chrf": float(rows[:, 10].mean())}


def word_errors(texts: Texts, references: References) -> Array:
    """[N, 6]: wrong and all words, wrong and all characters, without case and punctuation; wrong and all words as
    they stand. The first reference counts."""
    try:
        import jiwer
    except ImportError as error:
        raise MissingDependency("jiwer", extra=_EXTRA) from error
    rows = []
    for text, known in zip(texts, references, strict=True):
        said, wanted = heard(text), heard(known[0])
        words, characters = jiwer.process_words(wanted, said), jiwer.process_characters(wanted, said)
        verbatim = jiwer.process_words(_plain(known[0]), _plain(text))
        rows.append([n for found in (words, characters, verbatim) for n in _errors(found)])
    return np.array(rows, dtype=np.float64).reshape(-1, 6)


def _errors(found: Any) -> tuple[int, int]:
    wrong = found.substitutions + found.deletions
    return wrong + found.insertions, found.hits + wrong


def _error_rates(rows: Array) -> dict[str, float]:
    wrong, words, wrong_characters, characters, wrong_verbatim, verbatim = rows.sum(axis=0).tolist()
    wer = 100.0 * wrong / max(1.0, words)
    others = {"wer": wer, "cer": 100.0 * wrong_characters / max(1.0, characters)}
    return {"word_accuracy": 100.0 - wer, **others, "wer_verbatim": 100.0 * wrong_verbatim / max(1.0, verbatim)}


def heard(text: str) -> str:
    """What of a text can be heard: no case, and no punctuation but within words."""
    kept = "".join(c if c.isalnum() or c == "'" or c.isspace() else " " for c in text.casefold())
    return _plain(kept)


def _plain(text: str) -> str:
    return " ".join(text.split())


ROUGE = TextMetric("rouge_l", True, rouge, _mean_rouge)
BLEU_AND_CHRF = TextMetric("bleu", False, bleu, _corpus_bleu)
WORD_ERRORS = TextMetric("word_accuracy", False, word_errors, _error_rates)
