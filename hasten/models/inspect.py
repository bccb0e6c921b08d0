"""Look at a checkpoint without loading its weights.

Takes a :class:`ModelRef`, gives :class:`CheckpointFiles`: a local folder with its parsed
``config.json``. Every mistake a user can make with a path or hub id is named here,
before torch is imported.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten.models import FAMILIES
from hasten.records import InputError, MissingDependency, ModelRef

_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_HUB_FILES = ["*.json", "*.txt", "*.safetensors", "*.model", "README.md", "LICENSE*", "1_Pooling/*"]
_HEADED = {"text-classification": "ForSequenceClassification"}
_FOREIGN_HEADS = (
    "ForCausalLM",
    "LMHeadModel",
    "ForConditionalGeneration",
    "ForTokenClassification",
    "ForQuestionAnswering",
)


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """A checkpoint on disk that passed the light checks."""

    folder: Path
    config: Mapping[str, Any]
    family: str
    weights: tuple[Path, ...]
    pickled: bool

    @property
    def weights_bytes(self) -> int:
        return sum(p.stat().st_size for p in self.weights)

    def source_hash(self) -> str:
        """SHA-256 over names and contents of weights, config and tokenizer files."""
        digest = hashlib.sha256()
        names = {"config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "modules.json"}
        wanted = {*self.weights, *(self.folder / n for n in names if (self.folder / n).is_file())}
        for path in sorted(wanted):
            with path.open("rb") as stream:
                digest.update(path.name.encode() + b"\0" + hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()


def inspect_checkpoint(ref: ModelRef, *, task: str) -> CheckpointFiles:
    """Find, read and check a checkpoint's small files.

    Raises InputError for: no such path, hub offline, not a transformers folder, unknown architecture, a head
    of another task, pickled weights only, truncated safetensors, remote code.
    """
    folder = _local_folder(ref)
    config = _read_config(folder)
    family = _family(config, folder)
    _check_code(config, ref)
    _check_head(config, folder=folder, task=task)
    weights, pickled = _find_weights(folder, ref)
    if not pickled:
        for path in weights:
            _check_safetensors(path)
    return CheckpointFiles(folder=folder, config=config, family=family, weights=weights, pickled=pickled)


def license_of(folder: Path) -> str | None:
    """The licence named in README front matter, or the first line of a LICENSE file."""
    readme = folder / "README.md"
    if readme.is_file():
        found = re.search(r"\A---.*?^license:\s*(\S+)\s*$.*?^---", readme.read_text(errors="replace"), re.S | re.M)
        if found:
            return found.group(1)
    for path in sorted(folder.glob("LICENSE*")):
        lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
        return lines[0][:80] if lines else None
    return None


def _local_folder(ref: ModelRef) -> Path:
    path = Path(ref.source).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise InputError(
            f"{ref.source} is a file",
            expected="a checkpoint folder or hub id",
            remedy="give the folder that holds it",
        )
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", ref.source) or ref.source.startswith("."):
        raise InputError(
            f"no such path: {ref.source}", expected="a checkpoint folder or a hub id such as org/name",
            remedy="check the spelling",
        )  # fmt: skip
    return _download(ref)


def _download(ref: ModelRef) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingDependency("huggingface-hub", extra="hub") from error
    patterns = [*_HUB_FILES, *(_PICKLES if ref.allow_pickle else ())]
    try:
        return Path(snapshot_download(ref.source, revision=ref.revision, allow_patterns=patterns))
    except Exception as error:  # the hub client raises its own, httpx's and OSError alike
        raise InputError(
            f"{ref.source} is no local folder, and the hub did not give it ({type(error).__name__}: "
            f"{str(error).strip().splitlines()[0][:120]})",
            expected="an existing folder, or a hub id that can be reached or is cached",
            remedy="check the spelling and the network, or download it elsewhere and give the folder",
        ) from error


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        held = ", ".join(sorted(p.name for p in folder.iterdir())[:5]) or "nothing"
        raise InputError(
            f"{folder} has no config.json (it holds {held})",
            expected="a transformers checkpoint folder: config.json, *.safetensors, tokenizer files",
            remedy="save the model with save_pretrained, or give the right folder",
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: {error}", expected="valid JSON", remedy="restore the file") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise InputError(
            f"{path} names no model_type", expected="a transformers config with model_type",
            remedy=f"known families: {', '.join(FAMILIES)}",
        )  # fmt: skip
    return config


def _family(config: Mapping[str, Any], folder: Path) -> str:
    family = str(config["model_type"])
    if family not in FAMILIES:
        raise InputError(
            f"{folder} is of the architecture {family!r}, which hasten does not know",
            expected=f"one of {', '.join(FAMILIES)}",
            remedy="use a checkpoint of one of these families",
        )
    return family


def _check_code(config: Mapping[str, Any], ref: ModelRef) -> None:
    if config.get("auto_map") and not ref.trust_remote_code:
        raise InputError(
            f"{ref.source} comes with code of its own (auto_map: {str(config['auto_map'])[:120]})",
            expected="a checkpoint that transformers' own classes can load",
            remedy="read that code, then pass --trust-remote-code if you trust it",
        )


def _check_head(config: Mapping[str, Any], *, folder: Path, task: str) -> None:
    heads = [str(a) for a in config.get("architectures") or []]
    wanted = _HEADED.get(task)
    if wanted and not any(wanted in head for head in heads):
        raise InputError(
            f"{folder} is saved as {', '.join(heads) or 'no class'}, without a classification head",
            expected=f"a ...{wanted} checkpoint for --task {task}",
            remedy="fine-tune it with a head first, or use --task feature-extraction for embeddings",
        )
    if not wanted and any(head.endswith(_FOREIGN_HEADS) for head in heads):
        raise InputError(
            f"{folder} is saved as {', '.join(heads)}",
            expected=f"an encoder for --task {task}",
            remedy="give the encoder's own checkpoint",
        )


def _find_weights(folder: Path, ref: ModelRef) -> tuple[tuple[Path, ...], bool]:
    found = tuple(sorted(folder.glob("model*.safetensors")))
    if found:
        return found, False
    pickles = tuple(sorted(folder.glob("pytorch_model*.bin")))
    if pickles and ref.allow_pickle:
        return pickles, True
    if pickles:
        raise InputError(
            f"{folder} has only pickled weights ({pickles[0].name}); unpickling can run any code",
            expected="safetensors",
            remedy="convert it (save_pretrained writes safetensors), or pass --allow-pickle if you trust the source",
        )
    raise InputError(
        f"{folder} has no weights",
        expected="model.safetensors",
        remedy="complete the download or save the model again",
    )


def _check_safetensors(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as handle:
            handle.keys()
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is truncated or not safetensors ({error})",
            expected="a whole safetensors file",
            remedy="download or save it again",
        ) from error
