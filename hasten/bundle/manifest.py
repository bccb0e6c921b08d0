"""The manifest: what a bundle is, where it came from, and the hash of every file in it.

Takes a folder, gives a checked :class:`Manifest`. Knows no runtime and no task; it
never runs the model. What ran is read from here, never from a file name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from hasten.bundle.answers import Answers
from hasten.records import Figures, Host, InputError, Interval, Workload, read_as
from hasten.tasks import TASKS, get_task
from hasten.tasks.task import Generative

FORMAT_VERSION = 1
FILE_NAME = "manifest.json"
# What models are given; token types beside the first.
_INPUTS = ({"input_ids", "attention_mask"}, {"pixel_values"}, {"input_features"})
_REBUILD = "rebuild it with 'hasten optimize', or copy it again from where it was made"


@dataclass(frozen=True, slots=True)
class FileEntry:
    """Content hash and size of one file."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured when the bundle was made: the yardstick of ``hasten check --data``."""

    figures: Figures = field(default_factory=Figures)
    baseline: Figures = field(default_factory=Figures)
    speedup: Interval | None = None
    quality_drop_pt: Interval | None = None
    measured_on: str = "selection"


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything known about a bundle. Paths in ``files`` are relative, with forward slashes."""

    task: str
    labels: tuple[str, ...]
    family: str
    source: str
    source_hash: str
    license: str | None
    recipe: Mapping[str, Any]
    recipe_id: str
    recipe_label: str
    input_names: tuple[str, ...]
    max_length: int
    workload: Workload
    instructions: tuple[str, ...]
    precision_ran: str
    host: Host
    measured: Measurement
    golden_tolerance: float
    answers: Answers | None = None
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    created_utc: str = ""
    hasten_version: str = ""
    format_version: int = FORMAT_VERSION
    manifest_sha256: str = ""

    @property
    def model_bytes(self) -> int:
        """Of the model's files alone."""
        return sum(entry.bytes for name, entry in self.files.items() if name.startswith("model/"))


def hash_file(path: Path) -> FileEntry:
    """SHA-256 and size of one file, read in one pass."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return FileEntry(sha256=digest, bytes=path.stat().st_size)


def hash_folder(folder: Path) -> dict[str, FileEntry]:
    """Entries of every regular file under ``folder`` but the manifest, by relative POSIX path."""
    paths = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != FILE_NAME)
    return {p.relative_to(folder).as_posix(): hash_file(p) for p in paths}


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Hash the folder's files and write the manifest last; returns it as written."""
    filled = replace(manifest, files=hash_folder(folder), manifest_sha256="")
    filled = replace(filled, manifest_sha256=_self_hash(asdict(filled)))
    (folder / FILE_NAME).write_text(json.dumps(asdict(filled), indent=1), encoding="utf-8")
    return filled


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest alone (not the files' hashes).

    Raises InputError when it is absent, not JSON, of a newer format, altered, or of the wrong shape.
    """
    from pydantic import ValidationError

    path = folder / FILE_NAME
    if not path.is_file():
        raise InputError(
            f"no {FILE_NAME} in {folder}",
            expected="a bundle folder written by hasten",
            remedy="give the path of a bundle, for example out/bundle",
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise _damaged(f"{path} is not readable JSON ({error})") from error
    if not isinstance(data, dict):
        raise _damaged(f"{path} does not hold a JSON object")
    _check_version(data)
    if data.get("manifest_sha256") != _self_hash(data):
        raise _damaged(f"{path} was changed after it was written (its own hash does not match)")
    try:
        manifest = read_as(Manifest, data)
        _check_values(path, manifest)
        return manifest
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise _damaged(f"{path}: field {where!r}: {first['msg']}") from error


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Check that the folder holds exactly the manifest's files, as regular files with the same bytes.

    Raises InputError naming the first file that is missing, extra, a link, outside the folder, or altered.
    """
    for name in manifest.files:
        _check_name(name)
    links = [p for p in folder.rglob("*") if p.is_symlink()]
    if links:
        raise _damaged(f"{links[0]} is a symbolic link")
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {FILE_NAME}
    for name in sorted(set(manifest.files) - present):
        raise _damaged(f"{folder / name} is listed in the manifest but missing")
    for name in sorted(present - set(manifest.files)):
        raise _damaged(f"{folder / name} is not listed in the manifest")
    for name, entry in manifest.files.items():
        size = (folder / name).stat().st_size
        if size != entry.bytes:
            raise _damaged(f"{folder / name} has {size} bytes, the manifest says {entry.bytes}")
        if hash_file(folder / name).sha256 != entry.sha256:
            raise _damaged(f"{folder / name} has another SHA-256 than the manifest says")


def check_instructions(manifest: Manifest, available: frozenset[str]) -> None:
    """Raise InputError when this host lacks an instruction set that the model file was made for."""
    missing = sorted(set(manifest.instructions) - available)
    if missing:
        raise InputError(
            f"this host has no {', '.join(missing)}; the bundle was built for {', '.join(manifest.instructions)}",
            expected="a CPU with those instruction sets, or the model computes something else there",
            remedy="run 'hasten optimize' on this host (or one like it) and deploy that bundle",
        )


def _check_version(data: Mapping[str, Any]) -> None:
    version = data.get("format_version")
    if not isinstance(version, int):
        raise _damaged(f"format_version is {version!r}, not a number")
    if version < 1:
        raise _damaged(f"format_version is {version}")
    if version > FORMAT_VERSION:
        raise InputError(
            f"the bundle has format {version}, written by hasten {data.get('hasten_version', '?')}",
            expected=f"format {FORMAT_VERSION} or older",
            remedy="upgrade hasten: pip install --upgrade hasten",
        )


def _check_values(path: Path, manifest: Manifest) -> None:
    """Values that no run writes would fail far from here, or switch a check off."""
    labelled = manifest.task in TASKS and get_task(manifest.task).labelled
    writes = manifest.task in TASKS and isinstance(get_task(manifest.task), Generative)
    sound = {
        "max_length": manifest.max_length >= 1,
        "workload": manifest.workload.batch >= 1 and manifest.workload.threads >= 1,
        "golden_tolerance": 0 < manifest.golden_tolerance <= 1,
        "labels": bool(manifest.labels) == labelled and len(set(manifest.labels)) == len(manifest.labels),
        "task": manifest.task in TASKS,
        "input_names": set(manifest.input_names) - {"token_type_ids"} in _INPUTS,
        "recipe": isinstance(manifest.recipe.get("runtime"), dict),
        "answers": (manifest.answers is not None) == writes
        and (manifest.answers is None or manifest.answers.most >= 1),
    }
    wrong = [name for name, fine in sound.items() if not fine]
    if wrong:
        raise _damaged(f"{path}: field {wrong[0]!r} is {str(getattr(manifest, wrong[0]))[:60]}, which no bundle has")


def _check_name(name: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
        raise _damaged(f"the manifest names {name!r}, a path outside the bundle")


def _self_hash(data: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in data.items() if key != "manifest_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, default=str).encode()).hexdigest()


def _damaged(what: str) -> InputError:
    return InputError(what, expected="a bundle exactly as hasten wrote it", remedy=_REBUILD)
