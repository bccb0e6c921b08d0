"""Translation: an encoder reads a sentence, a decoder writes it in the other language.

BLEU of all rows together counts (Papineni et al. 2002, as sacrebleu has it); chrF stands beside it (Popovic 2015).
"""

from __future__ import annotations

from collections.abc import Mapping

from hasten.tasks.generating import Generating
from hasten.tasks.reference_rows import read_translations
from hasten.tasks.summarization import SEQ2SEQ_HEADS, source
from hasten.tasks.text_metrics import BLEU_AND_CHRF

ALIASES: Mapping[str, str] = {"source": "text", "src": "text"}


def translation() -> Generating:
    """For ``...ForConditionalGeneration`` that reads text, and Marian's models."""
    return Generating(
        name="translation", head=SEQ2SEQ_HEADS, auto="AutoModelForSeq2SeqLM", encoder=True, rows=read_translations,
        give=source, metric=BLEU_AND_CHRF, aliases=ALIASES,
    )  # fmt: skip
