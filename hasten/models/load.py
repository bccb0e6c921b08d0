"""Load a checkpoint's model, tokenizer and facts.

Takes a :class:`ModelRef`, gives a :class:`Checkpoint`. Weights come from safetensors
unless the user allowed pickle; no code of the checkpoint runs unless the user trusts
it. A weight that transformers would fill at random is an error, not a warning.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from hasten.models.inspect import CheckpointFiles, inspect_checkpoint, license_of
from hasten.models.pooling import pooling_of
from hasten.models.reshape import is_ours, open_model
from hasten.records import InputError, ModelRef

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
_VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
)
# transformers writes this for "no limit"
_NO_LIMIT = 100_000
# RoBERTa's positions start after the padding index
_POSITION_OFFSET = {"roberta": 2, "xlm-roberta": 2}
# Buffers, and without a head the pooler, which our own pooling never uses.
_MAY_BE_MISSING = {
    "text-classification": ("position_ids", "token_type_ids"),
    "feature-extraction": ("position_ids", "token_type_ids", "pooler."),
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded checkpoint. ``model`` is in eval mode and fp32; ``labels`` are in id order (empty: none)."""

    model: nn.Module
    family: str
    config: Any
    labels: tuple[str, ...]
    pooling: str
    normalize: bool
    tokenizer_json: str
    tokenizer_files: dict[str, bytes]
    max_length: int
    source_hash: str
    license: str | None


def load_checkpoint(ref: ModelRef, *, task: str) -> Checkpoint:
    """Load everything. Raises InputError as :func:`inspect_checkpoint`, and for weights that do not fit."""
    files = inspect_checkpoint(ref, task=task)
    model = _load_model(files, ref, task=task)
    tokenizer_files, limit = _tokenizer(files, ref)
    pooling, normalize = pooling_of(files.folder) if task == "feature-extraction" else ("mean", False)
    positions = int(model.config.max_position_embeddings) - _POSITION_OFFSET.get(files.family, 0)
    return Checkpoint(
        model=model,
        family=files.family,
        config=model.config,
        labels=_labels(model.config, files.folder) if task == "text-classification" else (),
        pooling=pooling,
        normalize=normalize,
        tokenizer_json=tokenizer_files["tokenizer.json"].decode("utf-8"),
        tokenizer_files=tokenizer_files,
        max_length=min(positions, limit),
        source_hash=files.source_hash(),
        license=license_of(files.folder),
    )


def _load_model(files: CheckpointFiles, ref: ModelRef, *, task: str) -> Any:
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    headed = task == "text-classification"
    if is_ours(files.folder):
        return _reshaped(files.folder, headed=headed)
    loader = transformers.AutoModelForSequenceClassification if headed else transformers.AutoModel
    try:
        model, info = loader.from_pretrained(
            files.folder,
            dtype=torch.float32,
            use_safetensors=not files.pickled,
            trust_remote_code=ref.trust_remote_code,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # shape mismatches, bad values in config.json: all of them the checkpoint's
        raise InputError(
            f"transformers cannot load {files.folder}: {str(error).strip()[:400]}",
            expected="weights that fit the config.json beside them",
            remedy="load it with transformers alone to see more, then save it again",
        ) from error
    missing = [k for k in info["missing_keys"] if not any(part in k for part in _MAY_BE_MISSING[task])]
    if missing or info.get("mismatched_keys"):
        bad = [*missing, *map(str, info.get("mismatched_keys", []))]
        raise InputError(
            f"{len(bad)} weights of {files.folder} are missing or of another shape, such as {bad[0]}",
            expected="every weight: transformers would fill them at random and the model would be wrong",
            remedy="save the whole fine-tuned model (with its head) and give that folder",
        )
    return model.eval()


def _reshaped(folder: Path, *, headed: bool) -> Any:
    """A folder that only hasten can read: shapes that the config does not say, or matrices in parts."""
    import torch
    import transformers

    name = (json.loads((folder / "config.json").read_text()).get("architectures") or ["none"])[0]
    cls = getattr(transformers, name, None)
    if cls is None or headed != name.endswith("ForSequenceClassification"):
        raise InputError(
            f"{folder} holds a {name}", expected="a model of the task, saved by hasten", remedy="give its own task"
        )
    return open_model(cls, folder, attention="sdpa", dtype=torch.float32)


def _labels(config: Any, folder: Path) -> tuple[str, ...]:
    """The label names in the order of the outputs."""
    names = config.id2label or {}
    if sorted(names) != list(range(len(names))):
        raise InputError(
            f"{folder / 'config.json'} numbers its labels {', '.join(map(str, sorted(names)[:5]))}",
            expected="id2label with the ids 0, 1, 2 and so on",
            remedy="correct id2label and label2id",
        )
    return tuple(str(names[i]) for i in range(len(names)))


def _tokenizer(files: CheckpointFiles, ref: ModelRef) -> tuple[dict[str, bytes], int]:
    """The tokenizer's files as transformers would use them, and its own length limit.

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
        limit = int(min(tokenizer.model_max_length or _NO_LIMIT, _NO_LIMIT))
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
