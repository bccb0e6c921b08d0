"""Load a checkpoint's model, tokenizer and facts.

Takes a :class:`ModelRef`, gives a :class:`Checkpoint`. Weights come from safetensors
unless the user allowed pickle; no code of the checkpoint runs unless the user trusts
it. A weight that transformers would fill at random is an error, not a warning.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from hasten.models.classes import class_name, transformers_class
from hasten.models.inspect import CheckpointFiles, Purpose, inspect_checkpoint, license_of
from hasten.models.interchange.conversions import converted
from hasten.models.interchange.dequantized import GENERATION, WEIGHTS, is_quantized, layout_of, write_plain
from hasten.models.left_over import check_layers, check_quantized
from hasten.models.pooling import pooling_of
from hasten.models.processors import NO_LIMIT, image_files, sound_files, tokenizer_files
from hasten.models.reshape import is_ours, open_model, prepared
from hasten.models.shards import INDEX
from hasten.models.silence import silence_transformers
from hasten.records import InputError, ModelRef

_BUFFERS = ("position_ids", "token_type_ids")
# Without a head of classes nobody uses it; our own pooling does not either.
_POOLER = "pooler."


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded checkpoint. ``model`` is in eval mode and fp32; ``labels`` are in id order (empty: none).

    ``processor_files`` are the tokenizer's or the image processor's, ``input_names`` the arrays that the model takes;
    ``max_length`` is in tokens, 1 for images.
    """

    model: nn.Module
    family: str
    config: Any
    labels: tuple[str, ...]
    pooling: str
    normalize: bool
    tokenizer_json: str
    processor_files: dict[str, bytes]
    input_names: tuple[str, ...]
    max_length: int
    source_hash: str
    license: str | None


def load_checkpoint(ref: ModelRef, *, task: Purpose) -> Checkpoint:
    """Load everything. Raises InputError as :func:`inspect_checkpoint`, and for weights that do not fit."""
    files = inspect_checkpoint(ref, task=task)
    model, (processor_files, limit) = _load_both(files, ref, task=task)
    pictured = "tokenizer.json" not in processor_files
    pooling, normalize = pooling_of(files.folder) if not (task.head or pictured) else ("mean", False)
    return Checkpoint(
        model=model,
        family=str(model.config.model_type),
        config=model.config,
        labels=_labels(model, files.folder) if task.labelled else (),
        pooling=pooling,
        normalize=normalize,
        tokenizer_json=processor_files.get("tokenizer.json", b"").decode("utf-8"),
        processor_files=processor_files,
        input_names=input_names(model),
        max_length=min(positions_of(model), limit),
        source_hash=files.source_hash(),
        license=None if files.gguf else license_of(files.folder),
    )


def _load_both(files: CheckpointFiles, ref: ModelRef, *, task: Purpose) -> tuple[Any, tuple[dict[str, bytes], int]]:
    """The model, and its processor's files with the limit in tokens. What is not plain floats becomes so once."""
    if files.gguf:
        from hasten.models.gguf import convert_gguf, load_converted

        folder = converted(files.weights, make=partial(convert_gguf, files.weights[0]))
        model, found = load_converted(folder)
        return model, (found, NO_LIMIT)
    model = prepared(_load_model(_dequantized(files), ref, task=task))
    if model.main_input_name == "pixel_values":
        return model, (image_files(files), 1)
    if model.main_input_name == "input_features":
        return model, ({**tokenizer_files(files, ref)[0], **sound_files(files)}, 1)
    return model, tokenizer_files(files, ref)


def _dequantized(files: CheckpointFiles) -> CheckpointFiles:
    """The checkpoint with plain floats: itself, or what was made of it."""
    if not is_quantized(files.config) or is_ours(files.folder) or files.pickled:
        return files
    layout_of(files.config)  # a refusal needs no lock
    beside = (files.folder / name for name in (INDEX, GENERATION))
    sources = (*files.weights, files.folder / "config.json", *(path for path in beside if path.is_file()))
    folder = converted(sources, make=partial(write_plain, files.folder, files.config))
    return replace(files, folder=folder, weights=(folder / WEIGHTS,))


def positions_of(model: Any) -> int:
    """Tokens that the model has positions for; families that need none say so by leaving it out.

    Positions of RoBERTa and its kin start after the padding index, which their table then knows.
    """
    found = getattr(model.config, "max_position_embeddings", None)
    tables = (m for name, m in model.named_modules() if name.endswith("position_embeddings"))
    padding = next((p for table in tables if (p := getattr(table, "padding_idx", None)) is not None), None)
    return NO_LIMIT if not found else int(found) - (0 if padding is None else int(padding) + 1)


def input_names(model: Any) -> tuple[str, ...]:
    """The arrays that the model's forward takes: token types only where the checkpoint embeds more than one."""
    if model.main_input_name != "input_ids":
        return (str(model.main_input_name),)
    taken = inspect.signature(model.forward).parameters
    if "attention_mask" not in taken:
        raise InputError(
            f"{type(model).__name__} takes no attention mask", expected="a model that can be told what is padding",
            remedy="use a checkpoint of another architecture",
        )  # fmt: skip
    typed = "token_type_ids" in taken
    several = int(getattr(model.config, "type_vocab_size", 0) or 0) > 1
    return ("input_ids", "attention_mask", *(("token_type_ids",) if typed and several else ()))


def _load_model(files: CheckpointFiles, ref: ModelRef, *, task: Purpose) -> Any:
    import torch
    import transformers

    silence_transformers()
    if is_ours(files.folder):
        return _reshaped(files.folder, head=task.head)
    try:
        model, info = getattr(transformers, task.auto).from_pretrained(
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
    needless = _BUFFERS if task.head else (*_BUFFERS, _POOLER)
    missing = [k for k in info["missing_keys"] if not any(part in k for part in needless)]
    if missing or info.get("mismatched_keys"):
        bad = [*missing, *map(str, info.get("mismatched_keys", []))]
        raise InputError(
            f"{len(bad)} weights of {files.folder} are missing or of another shape, such as {bad[0]}",
            expected="every weight: transformers would fill them at random and the model would be wrong",
            remedy="save the whole fine-tuned model (with its head) and give that folder",
        )
    check_layers(model, info["unexpected_keys"], folder=files.folder)
    if task.head and is_quantized(files.config) and not files.pickled:
        check_quantized(info["unexpected_keys"], weights=files.weights)
    return model.eval()


def _reshaped(folder: Path, *, head: str | tuple[str, ...]) -> Any:
    """A folder that only hasten can read: shapes that the config does not say, or matrices in parts."""
    import torch

    name = class_name(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    cls = transformers_class(name)
    if cls is None or not (name.endswith(head) if head else "For" not in name):
        raise InputError(
            f"{folder} holds a {name}", expected="a model of the task, saved by hasten", remedy="give its own task"
        )
    return open_model(cls, folder, attention="sdpa", dtype=torch.float32)


def _labels(model: Any, folder: Path) -> tuple[str, ...]:
    """The label names in the order of the outputs."""
    names = model.config.id2label or {}
    if len(names) == 1:
        raise InputError(
            f"{folder} has a single output: it gives a number, not a class", expected="two labels or more",
            remedy="use --task text-regression",
        )  # fmt: skip
    if sorted(names) != list(range(len(names))):
        raise InputError(
            f"{folder / 'config.json'} numbers its labels {', '.join(map(str, sorted(names)[:5]))}",
            expected="id2label with the ids 0, 1, 2 and so on",
            remedy="correct id2label and label2id",
        )
    return tuple(str(names[i]) for i in range(len(names)))
