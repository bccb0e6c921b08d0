"""Speech recognition: an encoder hears a recording, a decoder writes what was said.

The words that are right count: 100 less the word error rate over all rows, without case and punctuation, with the
rate itself, the one of characters, and the one of the texts as they stand beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hasten.tasks.audio_rows import read_recordings
from hasten.tasks.examples import Example
from hasten.tasks.generating import Generating
from hasten.tasks.task import Item
from hasten.tasks.text_metrics import WORD_ERRORS

HEADS = ("WhisperForConditionalGeneration",)
ALIASES: Mapping[str, str] = {"file": "audio", "path": "audio", "recording": "audio"}


def speech_recognition() -> Generating:
    """For Whisper."""
    return Generating(
        name="speech-recognition", head=HEADS, auto="AutoModelForSpeechSeq2Seq", encoder=True, rows=read_recordings,
        give=_recording, metric=WORD_ERRORS, needs_references=True, aliases=ALIASES,
    )  # fmt: skip


def _recording(task: Generating, processor: Any, item: Item) -> Example:
    del task
    found: Example = processor.hear(item["audio"], name=str(item.get("text") or "the recording"))
    return found
