"""hasten's own runtime for CPUs: fused integer kernels, ragged batches, a flat program that touches no Python.

Takes the task's wrapper around an encoder, writes ``model.safetensors`` (the program's numbers and its matrices) and
``model.json`` (what goes in, and in which form it comes out); opening needs the native library and numpy alone. The
program is made in ``native_encoders``, its matrices in ``native_weights``; ``hasten.native`` runs it.

A request's padding is left out before anything is computed: where a task has outputs of every token, those of padding
are zeros.

Legend: B rows, L tokens of the longest, T real tokens of all rows, C outputs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from hasten.records import Config, InputError, Rejected
from hasten.runtimes.runtime import Array, Arrays, Exported, Probe, Session

if TYPE_CHECKING:
    from hasten.native.engine import Engine

MODEL, FACTS = "model.safetensors", "model.json"
_FORMAT = 1
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_BF16 = frozenset({"avx512_bf16", "amx_bf16"})


@dataclass(frozen=True, slots=True)
class NativeConfig:
    """``int8-dynamic``: weights with a step for every output row, activations for every token at run time. ``group``
    inputs share a step in ``int4``. ``embeddings``: the table of words in int8 too (smaller, as fast)."""

    kind: ClassVar[str] = "native"
    precision: Literal["fp32", "bf16", "int8-dynamic", "int4"] = "int8-dynamic"
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
        NativeConfig(),
        NativeConfig(precision="int4"),
        NativeConfig(embeddings=True),
        NativeConfig(precision="fp32"),
    ]
    if instructions & _BF16:
        found.insert(3, NativeConfig(precision="bf16"))
    if threads > 1:
        found.append(NativeConfig(threads=1))
    return tuple(found)


def export(wrapper: Any, config: NativeConfig, *, calibration: Sequence[Arrays], folder: Path, cache: Path) -> Exported:
    """Lower, round, write. Raises Rejected for what the engine cannot run."""
    del cache  # made in seconds
    if getattr(wrapper, "generative", False):
        raise Rejected("export", "the native engine runs encoders here, and this model writes text")
    from safetensors.numpy import save_file

    from hasten.native.serialized import serialize
    from hasten.runtimes.native_encoders import lowered

    names = tuple(calibration[0])
    if set(names) - set(_INPUTS) or not set(_INPUTS[:2]) <= set(names):
        taken = ", ".join(names)
        raise Rejected("export", f"the native engine is given {', '.join(_INPUTS)}, and this model takes {taken}")
    try:
        made = lowered(wrapper, precision=config.precision, group=config.group, embeddings=config.embeddings)
    except Rejected:
        raise
    except Exception as error:  # a checkpoint's own classes may lack anything; each is a finding for the ledger
        raise Rejected("export", f"{type(error).__name__}: {str(error).strip()[:300]}") from error
    facts = {
        "format": _FORMAT, "inputs": names, "per_token": made.per_token, "precision": config.precision,
        "notes": made.notes,
    }  # fmt: skip
    save_file(serialize(made.program).named(), folder / MODEL)
    (folder / FACTS).write_text(json.dumps(facts, indent=1), encoding="utf-8")
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
        facts = _facts(json.loads((folder / FACTS).read_text(encoding="utf-8")))
        stored = Serialized.of(load_file(folder / MODEL))
        engine = Engine(stored, threads=count, cores=cores[:count] if len(cores) >= count else None)
        return NativeSession(engine, facts)
    except (InputError, SafetensorError, OSError, ValueError) as error:
        said = error.got if isinstance(error, InputError) else str(error).strip()[:300]
        raise Rejected("open", f"the native engine cannot open {folder.name}/{MODEL}: {said}") from error


@dataclass(frozen=True, slots=True)
class _Facts:
    inputs: tuple[str, ...]
    per_token: bool
    precision: str


def _facts(read: Any) -> _Facts:
    """Raises ValueError for anything but what :func:`export` writes."""
    given: Mapping[str, Any] = read if isinstance(read, Mapping) else {}
    inputs, per_token, precision = given.get("inputs"), given.get("per_token"), given.get("precision")
    fine = (
        given.get("format") == _FORMAT
        and isinstance(inputs, list)
        and set(_INPUTS[:2]) <= set(map(str, inputs)) <= set(_INPUTS)
        and isinstance(per_token, bool)
        and precision in ("fp32", "bf16", "int8-dynamic", "int4")
    )
    if not fine:
        raise ValueError(f"{FACTS} does not say what goes in and comes out (format {given.get('format')!r})")
    assert isinstance(inputs, list)
    return _Facts(tuple(map(str, inputs)), bool(per_token), str(precision))


class NativeSession:
    """One engine; safe to call from several threads, which wait for each other."""

    def __init__(self, engine: Engine, facts: _Facts) -> None:
        self._engine, self._per_token = engine, facts.per_token
        self.input_names, self.precision = facts.inputs, facts.precision
        self._typed = _INPUTS[2] in facts.inputs
        rows = len(engine.run(np.zeros(3, np.int32), lengths=np.array([1, 2], np.int32)))
        if rows != (3 if facts.per_token else 2):
            raise ValueError(f"the program gives {rows} rows for 2 texts of 3 tokens, which is not what {FACTS} says")

    def run(self, arrays: Arrays) -> Array:
        ids, mask = arrays[_INPUTS[0]], arrays[_INPUTS[1]]
        real = mask != 0
        lengths = real.sum(axis=1, dtype=np.int32)
        if not lengths.all():  # an empty text is a token of padding
            real[lengths == 0, 0] = True
            lengths = np.maximum(lengths, 1)
        types = _narrow(arrays[_INPUTS[2]][real]) if self._typed else None
        made = self._engine.run(_narrow(ids[real]), lengths=lengths, types=types)
        if not self._per_token:
            return made
        output = np.zeros((*ids.shape, made.shape[1]), np.float32)
        output[real] = made
        return output

    def close(self) -> None:
        self._engine.close()


def _narrow(numbers: Array) -> Array:
    """int64 [T] as int32; what does not fit is an id that no table has, and must not become another one's."""
    found: Array = numbers.clip(-1, np.iinfo(np.int32).max).astype(np.int32)
    return found
