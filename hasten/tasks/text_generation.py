"""Text generation: a decoder goes on from a prompt.

Rows are prompts, and where there are any the texts that should follow (then ROUGE-L counts, with exact match beside
it). With ``--chat`` a prompt is what the user says, put through the tokenizer's own template.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hasten.tasks.examples import Example
from hasten.tasks.generating import Generating
from hasten.tasks.language_modeling import HEADS
from hasten.tasks.reference_rows import read_prompts
from hasten.tasks.task import Item
from hasten.tasks.text_metrics import ROUGE

ALIASES: Mapping[str, str] = {"prompt": "text", "instruction": "text"}


def text_generation() -> Generating:
    """For ``...ForCausalLM``."""
    return Generating(
        name="text-generation", head=HEADS, auto="AutoModelForCausalLM", encoder=False, rows=read_prompts,
        give=_prompt, metric=ROUGE, aliases=ALIASES,
    )  # fmt: skip


def _prompt(task: Generating, processor: Any, item: Item) -> Example:
    text = task.prefix + item["text"]
    found: Example = (
        processor.prompt(processor.conversation(text), specials=False) if task.chat else processor.prompt(text)
    )
    return found
