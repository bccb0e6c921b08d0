"""A checkpoint or a bundle in the form that other programs run: ``hasten export``.

Takes a bundle with weights (one of the runtime torch) or anything that ``hasten optimize`` takes, writes a GGUF file
for llama.cpp, a compressed-tensors folder for transformers and vLLM, or a plain transformers folder. Everything is made
beside the target and moved there at the end: what is at the target is whole.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hasten.records import InputError, ModelRef

TARGETS = ("gguf", "compressed-tensors", "hf")
_FLOATS = ("f32", "f16", "bf16")
# Targets -> precisions that they can be written in, the default first
PRECISIONS = {"gguf": ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1"), "compressed-tensors": _FLOATS, "hf": _FLOATS}
_TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written where; ``notes`` say how its matrices are kept."""

    target: str
    path: str
    precision: str
    bytes: int
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Source:
    """An opened model with its text head, and its processor's files."""

    name: str
    model: Any
    files: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class _AnyHead:
    """What loading asks of a task, for whatever the checkpoint is."""

    head: str | tuple[str, ...]
    auto: str
    name: str = "export"
    labelled: bool = False


def export(
    source: str | Path,
    *,
    to: str,
    out: str | Path,
    precision: str | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> Exported:
    """Write ``source`` as ``to`` (gguf, compressed-tensors or hf) at ``out``, in ``precision`` (default f32).

    Raises InputError for what the target cannot say, for a bundle without weights and an ``out`` that is taken;
    MissingDependency without the target's library. Nothing is left at ``out`` then.
    """
    kind = _checked(to, precision)
    target = Path(out).expanduser()
    _check_free(target, folder=to != "gguf")
    opened = open_source(
        ModelRef(str(source), revision=revision, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".export-", dir=target.parent))
    try:
        notes = _write(opened, staging, to=to, kind=kind)
        size = sum(path.stat().st_size for path in staging.iterdir())
        if to == "gguf":
            (staging / "model.gguf").replace(target)
        else:
            staging.chmod(0o755)  # mkdtemp makes it private
            staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Exported(to, str(target), kind, size, notes)


def open_source(ref: ModelRef) -> Source:
    """A bundle's or a checkpoint's model in fp32 as transformers has it. Raises InputError."""
    from hasten.bundle.manifest import FILE_NAME
    from hasten.models.interchange.original_form import original_form

    folder = Path(ref.source).expanduser()
    if (folder / FILE_NAME).is_file():
        model, files = _of_bundle(folder)
    else:
        model, files = _of_checkpoint(ref)
    return Source(folder.name, original_form(model), files)


def show(result: Exported, *, console: Any) -> None:
    """For people."""
    console.print(
        f"wrote {result.path}: {result.target}, {result.precision}, {result.bytes / 1e6:,.1f} MB", soft_wrap=True
    )
    for note in result.notes:
        console.print(f"  {note}")


def _checked(to: str, precision: str | None) -> str:
    if to not in TARGETS:
        raise InputError(f"--to {to}", expected=", ".join(TARGETS), remedy="give one of them")
    kind = precision or PRECISIONS[to][0]
    if kind not in PRECISIONS[to]:
        raise InputError(
            f"--precision {kind} with --to {to}", expected=", ".join(PRECISIONS[to]),
            remedy="the bits of compressed-tensors are those of the model's own grids; choose the type of the rest",
        )  # fmt: skip
    return kind


def _check_free(target: Path, *, folder: bool) -> None:
    empty = folder and target.is_dir() and not any(target.iterdir())
    if target.exists() and not empty:
        raise InputError(f"--out {target} is there already", expected="a new name", remedy="give another one")


def _write(opened: Source, staging: Path, *, to: str, kind: str) -> tuple[str, ...]:
    if to == "gguf":
        from hasten.models.gguf_header import read_header
        from hasten.models.interchange.gguf_writer import write_gguf

        if "tokenizer.json" not in opened.files:
            raise InputError(f"{opened.name} has no tokenizer", expected="tokenizer.json", remedy="save it beside it")
        path = staging / "model.gguf"
        notes = write_gguf(opened.model, opened.files, path, kind=kind, name=opened.name)
        read_header(path)  # as strictly as any file from elsewhere
        return notes
    import torch

    dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[kind]
    if to == "hf":
        opened.model.to(dtype).save_pretrained(staging)
        notes = (f"{type(opened.model).__name__} in {kind}",)
    else:
        from hasten.models.interchange.compressed_writer import write_compressed

        notes = write_compressed(opened.model, staging, dtype=dtype)
    for name, content in opened.files.items():
        (staging / name).write_bytes(content)
    return notes


def _of_bundle(folder: Path) -> tuple[Any, dict[str, bytes]]:
    import torch

    from hasten.bundle.manifest import read_manifest, verify_files
    from hasten.models.classes import transformers_class
    from hasten.models.reshape import open_model
    from hasten.tasks.processor import files_of

    manifest = read_manifest(folder)
    verify_files(folder, manifest)
    facts = folder / "model" / "wrapper.json"
    runtime = str(manifest.recipe["runtime"].get("kind"))
    if not facts.is_file():
        raise InputError(
            f"the bundle {folder} holds what {runtime} runs, and no weights",
            expected="a bundle of the runtime torch, or a checkpoint",
            remedy="run hasten optimize with --runtimes torch and export that bundle",
        )
    name = str(json.loads(facts.read_text(encoding="utf-8"))["class"])
    cls = transformers_class(name)
    if cls is None:
        raise InputError(
            f"the bundle {folder} holds a {name}", expected="a model of transformers", remedy="build the bundle again"
        )
    model = open_model(cls, folder / "model", attention="sdpa", dtype=torch.float32)
    return model, files_of(folder)


def _own_class(config: Path) -> str:
    """Raises InputError for a name that is no model's."""
    from hasten.models.classes import class_name, transformers_class

    try:
        name = class_name(json.loads(config.read_text(encoding="utf-8")))
    except (ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{config}: {error}", expected="valid JSON", remedy="restore the file") from error
    if name == "none":
        return "AutoModel"
    if transformers_class(name) is None:
        raise InputError(
            f"{config} names the class {name}", expected="a model that transformers has",
            remedy="save the model again with save_pretrained",
        )  # fmt: skip
    return name


def _of_checkpoint(ref: ModelRef) -> tuple[Any, dict[str, bytes]]:
    from hasten.models.inspect import local_folder
    from hasten.models.load import load_checkpoint

    if ref.source.endswith(".gguf"):
        found = load_checkpoint(ref, task=_AnyHead(("ForCausalLM",), "AutoModelForCausalLM"))
        return found.model, found.processor_files
    folder = local_folder(ref)
    config = folder / "config.json"
    name = _own_class(config) if config.is_file() else "AutoModel"
    # A bare encoder is asked for by no head, as its own task does.
    found = load_checkpoint(ref, task=_AnyHead(name if "For" in name or "Head" in name else "", name))
    template = folder / _TEMPLATE
    own = {_TEMPLATE: template.read_bytes()} if template.is_file() else {}
    return found.model, {**found.processor_files, **own}
