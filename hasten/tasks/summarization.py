"""Summarization: an encoder reads a document, a decoder writes the summary. ROUGE-L counts (Lin 2004)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hasten.tasks.examples import Example
from hasten.tasks.generating import Generating
from hasten.tasks.reference_rows import read_documents
from hasten.tasks.task import Item
from hasten.tasks.text_metrics import ROUGE

SEQ2SEQ_HEADS = ("ForConditionalGeneration", "MTModel")
ALIASES: Mapping[str, str] = {"document": "text", "article": "text"}


def summarization() -> Generating:
    """For ``...ForConditionalGeneration`` that reads text."""
    return Generating(
        name="summarization", head=SEQ2SEQ_HEADS, auto="AutoModelForSeq2SeqLM", encoder=True, rows=read_documents,
        give=source, metric=ROUGE, aliases=ALIASES,
    )  # fmt: skip


def source(task: Generating, processor: Any, item: Item) -> Example:
    """What the encoder reads: the prefix that the checkpoint was trained with, and the text."""
    found: Example = processor.encode(task.prefix + item["text"])
    return found
