"""hasten's own runtime for CPUs: fused integer kernels, ragged batches, a flat program that touches no Python.

Takes the task's wrapper, writes ``model.safetensors`` (the program's numbers and its matrices) and ``model.json`` (what
goes in, and in which form it comes out); opening needs the native library and numpy alone. The program is made in
``native_encoders``, ``native_images`` and ``native_decoders``, its matrices in ``native_weights``; ``hasten.native``
runs it, ``native_sessions`` and ``native_generation`` give it requests. A request's padding is left out before anything
is computed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hasten.records import Config, InputError, Rejected
from hasten.runtimes.generation_facts import FACTS as WRITING
from hasten.runtimes.generation_facts import check_cache, is_generative
from hasten.runtimes.generation_facts import facts_of as facts_of_writing
from hasten.runtimes.native_generation import WriterFacts, writer_of
from hasten.runtimes.native_sessions import IMAGES, TEXTS, Facts, facts_of, session_of
from hasten.runtimes.runtime import Arrays, Exported, Probe, Session

if TYPE_CHECKING:
    from hasten.native.program import Program
    from hasten.runtimes.native_encoders import Lowered
    from hasten.runtimes.native_weights import Precision

MODEL, FACTS = "model.safetensors", "model.json"
_GROUPED = ("int5", "int4")
_BF16 = frozenset({"avx512_bf16", "amx_bf16"})


@dataclass(frozen=True, slots=True)
class NativeConfig:
    """``int8-dynamic``: weights with a step for every output row, activations for every token at run time. ``group``
    inputs share a step in ``int4`` and ``int5``; ``fitted``: steps and offsets that are searched for each group to be
    nearest to the weights, and not those of training on the grid. ``embeddings``: the table of words in int8 too
    (smaller, as fast). Matrices that come on a grid of few bits keep it in every precision of integers.

    Of models that write or foretell text, ``head`` is the form of the product with the vocabulary, and of the table of
    words where they are one matrix (``None``: int8 where the layers are integers, else theirs); ``kv_cache`` that
    of what was read (``None``: bf16, in fp32 models fp32)."""

    kind: ClassVar[str] = "native"
    precision: Literal["fp32", "bf16", "int8-dynamic", "int5", "int4"] = "fp32"
    group: Literal[32, 64, 128] = 32
    fitted: bool = False
    embeddings: bool = False
    head: Literal["fp32", "bf16", "int8", "int5", "int4"] | None = None
    kv_cache: Literal["fp32", "bf16", "int8"] | None = None
    threads: int | None = None

    @property
    def grid(self) -> tuple[int, int | None] | None:
        """Bits and group (``None``: an output row) of the integers that weights are rounded to, where one trains for
        them."""
        grids: dict[str, tuple[int, int | None]] = {"int8-dynamic": (8, None), "int4": (4, self.group)}
        return None if self.fitted else grids.get(self.precision)

    @property
    def label(self) -> str:
        parts = [self.precision.replace("-", " ")]
        parts += [f"groups of {self.group}"] if {self.precision, self.head} & set(_GROUPED) else []
        parts += ["fitted"] if self.fitted else []
        parts += ["with embeddings"] if self.embeddings else []
        parts += [f"{self.head} head"] if self.head else []
        parts += [f"{self.kv_cache} cache"] if self.kv_cache else []
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
    generative = bool(getattr(wrapper, "generative", False))
    if config.fitted and config.precision not in _GROUPED:
        raise Rejected("export", f"fitted: {config.precision} has no steps to be searched for, int4 and int5 have")
    check_cache(config.kv_cache, generative=generative)
    try:
        return (_export_writer if generative else _export)(wrapper, config, dict(calibration[0]), folder)
    except Rejected:
        raise
    except Exception as error:  # a checkpoint's own classes may lack anything; each is a finding for the ledger
        raise Rejected("export", f"{type(error).__name__}: {str(error).strip()[:300]}") from error


def _export(wrapper: Any, config: NativeConfig, example: Arrays, folder: Path) -> Exported:
    names = tuple(example)
    made, picture = _lowered(wrapper, config, names)
    facts = Facts(names, made.per_token, config.precision, picture)
    return _written(folder, made.program, facts.to_dict(), names=names, notes=made.notes)


def _export_writer(wrapper: Any, config: NativeConfig, example: Arrays, folder: Path) -> Exported:
    from hasten.runtimes.native_decoders import lowered_writer

    made = lowered_writer(wrapper, **_forms(config), head=_head(config))
    own, facts = WriterFacts(config.precision, made.layers, made.best), facts_of_writing(wrapper, example)
    facts.write(folder)
    found = _written(folder, made.program, own.to_dict(), names=facts.input_names, notes=made.notes)
    return replace(found, files=(*found.files, WRITING))


def _written(
    folder: Path, program: Program, facts: Mapping[str, Any], *, names: tuple[str, ...], notes: tuple[str, ...]
) -> Exported:
    from safetensors.numpy import save_file

    from hasten.native.serialized import serialize

    save_file(serialize(program).named(), folder / MODEL)
    (folder / FACTS).write_text(json.dumps({**facts, "notes": notes}, indent=1), encoding="utf-8")
    return Exported(files=(MODEL, FACTS), input_names=names, instructions=(), notes=notes)


def _head(config: NativeConfig) -> Precision:
    """The form of the product with a vocabulary. int4 there costs more quality than it saves memory."""
    if config.head is None:
        return "int8-dynamic" if config.precision in ("int8-dynamic", *_GROUPED) else config.precision
    return "int8-dynamic" if config.head == "int8" else config.head


def open(folder: Path, config: NativeConfig, *, threads: int, cores: tuple[int, ...]) -> Session:
    """Load and pack. Raises Rejected for damaged files: the engine checks every size before it reads."""
    from hasten.native import missing
    from hasten.native.packed import open_engine

    absent = missing()
    if absent is not None:
        raise Rejected("open", absent)
    count = config.threads or threads
    try:
        read = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        engine = open_engine(folder / MODEL, threads=count, cores=cores[:count] if len(cores) >= count else None)
        if is_generative(folder):
            return writer_of(engine, folder, kv_cache=config.kv_cache, read=read)
        return session_of(engine, facts_of(read))
    except (InputError, OSError, ValueError, RecursionError) as error:
        said = error.got if isinstance(error, InputError) else str(error).strip()[:300]
        raise Rejected("open", f"the native engine cannot open {folder.name}/{MODEL}: {said}") from error


def _lowered(wrapper: Any, config: NativeConfig, names: tuple[str, ...]) -> tuple[Lowered, tuple[int, ...]]:
    """The program, and how images are cut."""
    from hasten.runtimes.native_decoders import lowered_reader
    from hasten.runtimes.native_encoders import lowered
    from hasten.runtimes.native_images import lowered_images
    from hasten.tasks.wrappers import NextTokenWrapper

    if names == IMAGES:
        made, cut = lowered_images(wrapper, precision=config.precision, group=config.group, fitted=config.fitted)
        return made, (*cut.shape, *cut.patch, cut.own)
    if set(names) - set(TEXTS) or not set(TEXTS[:2]) <= set(names):
        taken = ", ".join(names)
        raise Rejected("export", f"the native engine is given {', '.join(TEXTS)}, and this model takes {taken}")
    if isinstance(wrapper, NextTokenWrapper):
        return lowered_reader(wrapper, **_forms(config), head=_head(config)), ()
    if config.head is not None:
        raise Rejected("export", f"head {config.head}: a model that foretells no tokens has no such product")
    return lowered(wrapper, **_forms(config)), ()


def _forms(config: NativeConfig) -> dict[str, Any]:
    """What a program is told of its matrices."""
    return {
        "precision": config.precision, "group": config.group, "embeddings": config.embeddings, "fitted": config.fitted,
    }  # fmt: skip
