"""hasten's own runtime for CPUs: fused integer kernels, ragged batches, a flat program that touches no Python.

Takes the task's wrapper around an encoder, writes ``model.safetensors`` (the program's numbers and its matrices) and
``model.json`` (what goes in, and in which form it comes out); opening needs the native library and numpy alone. The
program is made in ``native_encoders`` and ``native_images``, its matrices in ``native_weights``; ``hasten.native`` runs
it, and ``native_sessions`` gives it requests. A request's padding is left out before anything is computed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hasten.records import Config, InputError, Rejected
from hasten.runtimes.native_sessions import IMAGES, TEXTS, Facts, facts_of, session_of
from hasten.runtimes.runtime import Arrays, Exported, Probe, Session

if TYPE_CHECKING:
    from hasten.runtimes.native_encoders import Lowered

MODEL, FACTS = "model.safetensors", "model.json"
_BF16 = frozenset({"avx512_bf16", "amx_bf16"})


@dataclass(frozen=True, slots=True)
class NativeConfig:
    """``int8-dynamic``: weights with a step for every output row, activations for every token at run time. ``group``
    inputs share a step in ``int4``. ``embeddings``: the table of words in int8 too (smaller, as fast)."""

    kind: ClassVar[str] = "native"
    precision: Literal["fp32", "bf16", "int8-dynamic", "int4"] = "fp32"
    group: Literal[32, 64, 128] = 32
    embeddings: bool = False
    threads: int | None = None

    @property
    def grid(self) -> tuple[int, int | None] | None:
        """Bits and group (``None``: an output row) of the integers that weights are rounded to."""
        grids: dict[str, tuple[int, int | None]] = {"int8-dynamic": (8, None), "int4": (4, self.group)}
        return grids.get(self.precision)

    @property
    def label(self) -> str:
        parts = [self.precision.replace("-", " ")]
        parts += [f"groups of {self.group}"] if self.precision == "int4" else []
        parts += ["with embeddings"] if self.embeddings else []
        parts += [f"{self.threads} thread{'s' * (self.threads != 1)}"] if self.threads else []
        return " ".join(parts)


def probe() -> Probe:
    """Whether the native library was built here, and which kernels it would choose."""
    from hasten import __version__
    from hasten.native import library

    try:
        found = library()
    except InputError as error:
        return Probe(False, reason=error.got, remedy=error.remedy)
    return Probe(True, version=__version__, facts={"kernels": found.isas[0]})


def space(*, instructions: frozenset[str], threads: int) -> tuple[Config, ...]:
    """Int8 first, which is the fastest wherever matrices are large; bf16 where the CPU multiplies it."""
    found = [
        NativeConfig(precision="int8-dynamic"),
        NativeConfig(precision="int4"),
        NativeConfig(precision="int8-dynamic", embeddings=True),
        NativeConfig(),
    ]
    if instructions & _BF16:
        found.insert(3, NativeConfig(precision="bf16"))
    if threads > 1:
        found.append(NativeConfig(precision="int8-dynamic", threads=1))
    return tuple(found)


def export(wrapper: Any, config: NativeConfig, *, calibration: Sequence[Arrays], folder: Path, cache: Path) -> Exported:
    """Lower, round, write. Raises Rejected for what the engine cannot run."""
    del cache  # made in seconds
    if getattr(wrapper, "generative", False):
        raise Rejected("export", "the native engine runs encoders here, and this model writes text")
    from safetensors.numpy import save_file

    from hasten.native.serialized import serialize

    names = tuple(calibration[0])
    try:
        made, picture = _lowered(wrapper, config, names)
    except Rejected:
        raise
    except Exception as error:  # a checkpoint's own classes may lack anything; each is a finding for the ledger
        raise Rejected("export", f"{type(error).__name__}: {str(error).strip()[:300]}") from error
    facts = Facts(names, made.per_token, config.precision, picture)
    save_file(serialize(made.program).named(), folder / MODEL)
    (folder / FACTS).write_text(json.dumps({**facts.to_dict(), "notes": made.notes}, indent=1), encoding="utf-8")
    return Exported(files=(MODEL, FACTS), input_names=names, instructions=(), notes=made.notes)


def open(folder: Path, config: NativeConfig, *, threads: int, cores: tuple[int, ...]) -> Session:
    """Load and pack. Raises Rejected for damaged files: the engine checks every size before it reads."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    from hasten.native import missing
    from hasten.native.engine import Engine
    from hasten.native.serialized import Serialized

    absent = missing()
    if absent is not None:
        raise Rejected("open", absent)
    count = config.threads or threads
    try:
        facts = facts_of(json.loads((folder / FACTS).read_text(encoding="utf-8")))
        stored = Serialized.of(load_file(folder / MODEL))
        engine = Engine(stored, threads=count, cores=cores[:count] if len(cores) >= count else None)
        return session_of(engine, facts)
    except (InputError, SafetensorError, OSError, ValueError) as error:
        said = error.got if isinstance(error, InputError) else str(error).strip()[:300]
        raise Rejected("open", f"the native engine cannot open {folder.name}/{MODEL}: {said}") from error


def _lowered(wrapper: Any, config: NativeConfig, names: tuple[str, ...]) -> tuple[Lowered, tuple[int, ...]]:
    """The program, and how images are cut."""
    from hasten.runtimes.native_encoders import lowered
    from hasten.runtimes.native_images import lowered_images

    if names == IMAGES:
        made, cut = lowered_images(wrapper, precision=config.precision, group=config.group)
        return made, (*cut.shape, *cut.patch, cut.own)
    if set(names) - set(TEXTS) or not set(TEXTS[:2]) <= set(names):
        taken = ", ".join(names)
        raise Rejected("export", f"the native engine is given {', '.join(TEXTS)}, and this model takes {taken}")
    return lowered(
        wrapper, precision=config.precision, group=config.group, embeddings=config.embeddings
    ), ()  # fmt: skip
