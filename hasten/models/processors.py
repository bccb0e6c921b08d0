"""The files that turn a user's text or image into arrays: a checkpoint's tokenizer, or how it scales images.

Takes an inspected checkpoint, gives their contents by name as transformers would use them, and the tokenizer's own
length limit. A bundle carries the same files.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from hasten.models.inspect import CheckpointFiles
from hasten.records import InputError, ModelRef

IMAGES = "preprocessor_config.json"
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "chat_template.jinja",
)  # fmt: skip
_BOTH = "processor_config.json"  # where newer checkpoints keep what they do to recordings
_VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
)
# transformers writes this for "no limit"
NO_LIMIT = 100_000


def image_files(files: CheckpointFiles) -> dict[str, bytes]:
    """How the checkpoint wants its images. Raises InputError where it does not say."""
    path = files.folder / IMAGES
    if not path.is_file():
        raise InputError(
            f"{files.folder} has no {IMAGES}",
            expected="the size, mean and deviation that the model was trained with",
            remedy="save the image processor into the folder with save_pretrained",
        )
    return {IMAGES: path.read_bytes()}


def sound_files(files: CheckpointFiles) -> dict[str, bytes]:
    """How the checkpoint wants its recordings, under the older name. Raises InputError where it does not say."""
    path, both = files.folder / IMAGES, files.folder / _BOTH
    if path.is_file():
        return {IMAGES: path.read_bytes()}
    if both.is_file():
        found = json.loads(both.read_text(encoding="utf-8")).get("feature_extractor")
        if isinstance(found, dict):
            return {IMAGES: json.dumps(found).encode()}
    raise InputError(
        f"{files.folder} has no {IMAGES}", expected="the features that the model was trained with",
        remedy="save the feature extractor into the folder with save_pretrained",
    )  # fmt: skip


def tokenizer_files(files: CheckpointFiles, ref: ModelRef) -> tuple[dict[str, bytes], int]:
    """The tokenizer's files as transformers would use them, and its own length limit. Raises InputError.

    ``tokenizer.json`` as it lies in the folder is not enough: transformers lets ``tokenizer_config.json``
    overrule it (lower-casing, accents, special tokens, the side that is cut), and converts old vocabularies.
    """
    folder = files.folder
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        # transformers would make a tokenizer without words out of nothing
        raise InputError(
            f"{folder} has no tokenizer files",
            expected=f"one of {', '.join(_VOCABULARIES)}",
            remedy="save the tokenizer into the folder with save_pretrained",
        )
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=ref.trust_remote_code, local_files_only=True
        )
        limit = int(min(tokenizer.model_max_length or NO_LIMIT, NO_LIMIT))
        if tokenizer.is_fast:
            tokenizer.backend_tokenizer.enable_truncation(limit, direction=tokenizer.truncation_side)
        with tempfile.TemporaryDirectory() as scratch:
            tokenizer.save_pretrained(scratch)
            found = {
                name: (Path(scratch) / name).read_bytes()
                for name in _TOKENIZER_FILES
                if (Path(scratch) / name).is_file()
            }
    except Exception as error:  # broken JSON, a missing vocabulary, an unknown class: all of them the checkpoint's
        raise InputError(
            f"{folder} has no usable tokenizer ({str(error).strip()[:200]})",
            expected="tokenizer.json or a vocabulary, and a tokenizer_config.json, that transformers can read",
            remedy="save the tokenizer into the folder with save_pretrained",
        ) from error
    if "tokenizer.json" not in found:
        raise InputError(
            f"the tokenizer of {folder} has no fast form", expected="tokenizer.json",
            remedy="save a fast tokenizer into the folder",
        )  # fmt: skip
    return found, limit
