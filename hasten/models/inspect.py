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
from typing import Any, Protocol

from hasten.models import FAMILIES
from hasten.models.heads import check_head
from hasten.models.shards import INDEX, weight_files
from hasten.records import InputError, MissingDependency, ModelRef

# Weights that only hasten can put together (:mod:`hasten.models.reshape`).
OWN_WEIGHTS = "hasten.safetensors"
# What a config says that only hasten can open: layers of other shapes, matrices stored compactly.
MARK, COMPACT = "hasten_reshaped", "hasten_compact"
# What peft leaves beside (or instead of) a model's own weights.
_ADAPTER = "adapter_config.json"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_HUB_FILES = ["*.json", "*.txt", "*.safetensors", "*.model", "README.md", "LICENSE*", "1_Pooling/*", "*.jinja"]
# Beside the weights: sizes and settings, and whatever a processor may be made of.
_MATTERS = (
    "config.json", INDEX, "modules.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "chat_template.jinja", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.json",
    "vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model",
    "source.spm", "target.spm",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """A checkpoint on disk that passed the light checks."""

    folder: Path
    config: Mapping[str, Any]
    family: str
    weights: tuple[Path, ...]
    pickled: bool
    gguf: bool = False

    @property
    def weights_bytes(self) -> int:
        return sum(p.stat().st_size for p in self.weights)

    def source_hash(self) -> str:
        """SHA-256 over names and contents of the weights and of all files that say what becomes of an input."""
        digest = hashlib.sha256()
        wanted = {*self.weights, *(self.folder / n for n in _MATTERS if (self.folder / n).is_file())}
        for path in sorted(wanted):
            with path.open("rb") as stream:
                digest.update(path.name.encode() + b"\0" + hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()


class Purpose(Protocol):
    """What loading must know of a task (see :class:`hasten.tasks.task.Task`)."""

    @property
    def name(self) -> str: ...
    @property
    def head(self) -> str | tuple[str, ...]: ...
    @property
    def auto(self) -> str: ...
    @property
    def labelled(self) -> bool: ...


def inspect_checkpoint(ref: ModelRef, *, task: Purpose | None) -> CheckpointFiles:
    """Find, read and check a checkpoint's small files; without a ``task`` any head will do.

    A family without an adapter passes: what needs none can still be done.

    Raises InputError for: no such path, hub offline, not a transformers folder, a head of another task, pickled
    weights only, truncated safetensors, remote code, an adapter that is not merged, a broken GGUF file.
    """
    if ref.source.endswith(".gguf") and not Path(ref.source).expanduser().is_dir():
        if not Path(ref.source).expanduser().is_file():
            raise InputError(f"no such file: {ref.source}", expected="a GGUF file", remedy="check the spelling")
        return _inspect_gguf(Path(ref.source).expanduser(), task=task)
    folder = local_folder(ref)
    _check_merged(folder)
    config = _read_config(folder)
    family = str(config["model_type"])
    _check_generation(folder)
    _check_code(config, ref)
    if task is not None:
        check_head(config, folder=folder, head=task.head, task=task.name)
    weights, pickled = _find_weights(folder, config, ref)
    if not pickled:
        for path in weights:
            _check_safetensors(path)
    return CheckpointFiles(folder=folder, config=config, family=family, weights=weights, pickled=pickled)


def _inspect_gguf(path: Path, *, task: Purpose | None) -> CheckpointFiles:
    """One file with everything in it; what it holds is a model with a text head."""
    from hasten.models.gguf_header import read_header

    header = read_header(path)
    if task is not None and "ForCausalLM" not in task.head:
        raise InputError(
            f"{path} is a GGUF file, which holds a model that generates text", expected=f"one for --task {task.name}",
            remedy="use --task text-generation, language-modeling or multiple-choice with it",
        )  # fmt: skip
    return CheckpointFiles(path.parent, {"model_type": header.architecture}, header.architecture, (path,), False, True)


def license_of(folder: Path) -> str | None:
    """The licence named in README front matter, or the first line of a LICENSE file."""
    readme = folder / "README.md"
    if readme.is_file():
        text = readme.read_text(encoding="utf-8", errors="replace")
        found = re.search(r"\A---.*?^license:\s*(\S+)\s*$.*?^---", text, re.S | re.M)
        if found:
            return found.group(1)
    for path in sorted(folder.glob("LICENSE*")):
        text = path.read_text(encoding="utf-8", errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return lines[0][:80] if lines else None
    return None


def local_folder(ref: ModelRef) -> Path:
    path = Path(ref.source).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise InputError(
            f"{ref.source} is a file", expected="a checkpoint folder, a .gguf file or a hub id",
            remedy="give the folder that holds it",
        )  # fmt: skip
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
    config = _parsed(path, remedy="restore the file")
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise InputError(
            f"{path} names no model_type", expected="a transformers config with model_type",
            remedy=f"known families: {', '.join(FAMILIES)}",
        )  # fmt: skip
    if not isinstance(config.get("architectures") or [], list):
        raise InputError(
            f"{path} says architectures {str(config['architectures'])[:60]!r}", expected="a list of class names",
            remedy="restore the file",
        )  # fmt: skip
    return dict(config)


def _parsed(path: Path, *, remedy: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path}: {error}", expected="valid JSON", remedy=remedy) from error


def _check_generation(folder: Path) -> None:
    """transformers passes over a file that it cannot read, and answers would begin and end elsewhere."""
    path = folder / "generation_config.json"
    found = _parsed(path, remedy="restore or remove the file") if path.is_file() else {}
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no object", expected="JSON in braces", remedy="restore or remove the file")


def _check_merged(folder: Path) -> None:
    """Raise InputError for a folder with a peft adapter: alone it is no model, and beside one transformers would load
    it too where peft is installed, and leave it out where it is not."""
    path = folder / _ADAPTER
    if not path.is_file():
        return
    said = _parsed(path, remedy="restore or remove the file")
    facts = said if isinstance(said, dict) else {}
    kind, base = str(facts.get("peft_type") or "peft")[:40], str(facts.get("base_model_name_or_path") or "")[:120]
    weights = weight_files(folder) or any(folder.glob("pytorch_model*.bin"))
    beside = "beside a model's own weights" if weights else "without the weights that it was trained on"
    raise InputError(
        f"{folder} holds a {kind} adapter ({_ADAPTER}){f' for {base}' if base else ''}, {beside}",
        expected="one whole model",
        remedy="merge it (peft: AutoPeftModelFor...from_pretrained(folder).merge_and_unload().save_pretrained(new), "
        f"and the tokenizer into it) and give that folder, or give the base model{f' {base}' if base else ''} itself",
    )


def _check_code(config: Mapping[str, Any], ref: ModelRef) -> None:
    if config.get("auto_map") and not ref.trust_remote_code:
        raise InputError(
            f"{ref.source} comes with code of its own (auto_map: {str(config['auto_map'])[:120]})",
            expected="a checkpoint that transformers' own classes can load",
            remedy="read that code, then pass --trust-remote-code if you trust it",
        )


def _find_weights(folder: Path, config: Mapping[str, Any], ref: ModelRef) -> tuple[tuple[Path, ...], bool]:
    """What will be read: a file beside it that is not must not stand for it here."""
    if config.get("transformers_weights"):
        raise InputError(
            f"{folder / 'config.json'} says that the weights are in {str(config['transformers_weights'])[:120]!r}",
            expected="weights in model.safetensors, or in the parts that its index names",
            remedy="save the model again with save_pretrained",
        )
    own = folder / OWN_WEIGHTS
    ours = bool(config.get(MARK) or config.get(COMPACT)) and own.is_file()
    found = (own,) if ours else weight_files(folder)
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
        f"{folder} has no weights", expected="model.safetensors",
        remedy="complete the download or save the model again",
    )  # fmt: skip


def _check_safetensors(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as handle:
            handle.keys()
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is truncated or not safetensors ({error})", expected="a whole safetensors file",
            remedy="download or save it again",
        ) from error  # fmt: skip
