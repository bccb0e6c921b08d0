"""The processor of a checkpoint or bundle, opened from its files.

Takes the files' contents by name, gives a tokenizer or an image processor. Loads neither torch nor transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hasten.records import InputError
from hasten.tasks.examples import Example
from hasten.tasks.image_settings import FILE_NAME as IMAGES
from hasten.tasks.image_settings import settings_of
from hasten.tasks.images import ImageProcessor
from hasten.tasks.speech import SpeechProcessor
from hasten.tasks.tokenize import Tokenizer

# Where a bundle keeps the files; bundles of texts were there first.
PROCESSOR_FOLDER = "tokenizer"
TOKENIZER = "tokenizer.json"


def files_of(bundle: Path) -> dict[str, bytes]:
    """What :func:`open_processor` takes, from a bundle's folder."""
    return {path.name: path.read_bytes() for path in (bundle / PROCESSOR_FOLDER).iterdir()}


def open_processor(files: Mapping[str, bytes], *, max_length: int) -> Tokenizer | ImageProcessor | SpeechProcessor:
    """A tokenizer that cuts at ``max_length`` tokens, an image processor, or one of recordings where the files are
    of both.

    Raises InputError for files of neither, and for files that cannot be read; MissingDependency without Pillow.
    """
    if TOKENIZER in files:
        tokenizer = Tokenizer(_text(files[TOKENIZER], TOKENIZER), max_length=max_length, files=files)
        return SpeechProcessor(_parsed(files[IMAGES]), tokenizer) if IMAGES in files else tokenizer
    if IMAGES in files:
        return ImageProcessor(settings_of(_parsed(files[IMAGES])))
    raise InputError(
        f"no processor among {', '.join(sorted(files)) or 'no files'}",
        expected=f"{TOKENIZER} for texts, or {IMAGES} for images",
        remedy="save the tokenizer or the image processor beside the model with save_pretrained",
    )


def sample(processor: Tokenizer | ImageProcessor | SpeechProcessor) -> Example:
    """Any example that the processor makes: for what needs one before the user's own are there."""
    return processor.encode("a sample") if isinstance(processor, Tokenizer) else processor.blank()


def _parsed(content: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(_text(content, IMAGES))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{IMAGES}: {error}", expected="valid JSON", remedy="restore the file") from error
    if not isinstance(found, dict):
        raise InputError(
            f"{IMAGES} holds a {type(found).__name__}", expected="a JSON object", remedy="restore the file"
        )
    return found


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 ({error})", expected="the file as saved", remedy="restore it") from error
