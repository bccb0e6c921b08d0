"""Does a checkpoint's head fit the task? What each head of transformers is for, by the end of its class's name.

Takes a config as it was read, gives nothing, or the sentence that says what would fit. Opens no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hasten.records import InputError

_HEADS = {
    "ForSequenceClassification": "text-classification (text-regression for a single output)",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForImageClassification": "image-classification",
    "ForCausalLM": "text-generation, language-modeling or multiple-choice",
    "LMHeadModel": "text-generation, language-modeling or multiple-choice",
    "WhisperForConditionalGeneration": "speech-recognition",
    "ForConditionalGeneration": "summarization or translation",
    "MTModel": "translation",
}


def check_head(config: Mapping[str, Any], *, folder: Path, head: str | tuple[str, ...], task: str) -> None:
    """Raises InputError for a head of another task than ``task``, whose own head is ``head`` (empty: none)."""
    saved = [str(a) for a in config.get("architectures") or []]
    own = next((known for known in _HEADS if any(name.endswith(known) for name in saved)), None)
    fits = f"this one is for {_HEADS[own]}" if own else "fine-tune it with a head first"
    embeds = own in (None, "ForSequenceClassification")  # what that task takes, below
    # Whisper's class ends as those that read texts do.
    heard = own == "WhisperForConditionalGeneration" and own not in head
    if head and (heard or not any(name.endswith(head) for name in saved)):
        raise InputError(
            f"{folder} is saved as {', '.join(saved) or 'no class'}, without the head of {task}",
            expected=f"a ...{head if isinstance(head, str) else head[0]} checkpoint for --task {task}",
            remedy=fits + ("; --task feature-extraction takes any encoder for its embeddings" if embeds else ""),
        )
    if not head and own is not None and own != "ForSequenceClassification":
        raise InputError(
            f"{folder} is saved as {', '.join(saved)}",
            expected=f"an encoder for --task {task}",
            remedy=f"{fits}; for embeddings give the encoder's own checkpoint",
        )
