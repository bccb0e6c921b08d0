"""ExecuTorch with the XNNPACK delegate: the file that a phone loads, run here on the CPU.

Takes the task's wrapper, writes ``model.pte`` and ``model.json`` (what goes in, and which share of the operators
XNNPACK computes); opening needs executorch and torch, the library that its Python runtime is linked to. The program is
made in ``executorch_program``, its integers in ``executorch_quantize``.

Sizes are bounded, since a program's memory is laid out when it is made: a request holds at most as many tokens as
``model.json`` says, and more rows than a call takes are computed one call after the other.
"""

from __future__ import annotations

import json
import shutil
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from hasten.atomic import write_atomically
from hasten.records import Config, MissingDependency, Rejected
from hasten.runtimes.runtime import Array, Arrays, Exported, Probe, Session, is_tokens

MODEL, FACTS = "model.pte", "model.json"
_METHOD = "forward"


@dataclass(frozen=True, slots=True)
class ExecuTorchConfig:
    """``int4`` is what ExecuTorch calls 8da4w: weights of 4 bits in groups of ``group`` inputs, activations of 8 bits.

    ``rows``: the most that one call computes. With 1, a phone's case, XNNPACK gets more of the operators than with
    a free number.
    """

    kind: ClassVar[str] = "executorch"
    precision: Literal["fp32", "int8-dynamic", "int4"] = "fp32"
    group: Literal[32, 64, 128] = 32
    rows: Literal[1, 8] = 1
    threads: int | None = None

    @property
    def grid(self) -> tuple[int, int | None] | None:
        """Bits and group (``None``: an output row) of the integers that weights are rounded to."""
        return {"fp32": None, "int8-dynamic": (8, None), "int4": (4, self.group)}[self.precision]

    @property
    def label(self) -> str:
        parts = [self.precision.replace("-", " ")]
        parts += [f"groups of {self.group}"] if self.precision == "int4" else []
        parts += [f"{self.rows} rows a call"] if self.rows > 1 else []
        parts += [f"{self.threads} thread{'s' * (self.threads != 1)}"] if self.threads else []
        return " ".join(parts)


def probe() -> Probe:
    """Whether ExecuTorch is here to run, and torchao to quantize."""
    remedy = "pip install 'hasten[executorch]'"
    try:
        found = version("executorch")
    except PackageNotFoundError:
        return Probe(False, reason="executorch is not installed", remedy=remedy)
    try:
        quantizer = f"torchao {version('torchao')}"
    except PackageNotFoundError:
        quantizer = f"not installed; {remedy}"
    return Probe(True, version=found, facts={"int8 and int4": quantizer})


def space(*, instructions: frozenset[str], threads: int) -> tuple[Config, ...]:
    """Dynamic int8 first, then fp32, then the smallest file, then calls of several rows."""
    del instructions  # XNNPACK chooses its kernels when the file is opened
    found = [
        ExecuTorchConfig(precision="int8-dynamic"),
        ExecuTorchConfig(),
        ExecuTorchConfig(precision="int4"),
        ExecuTorchConfig(precision="int8-dynamic", rows=8),
    ]
    if threads > 1:
        found.append(ExecuTorchConfig(precision="int8-dynamic", threads=1))
    return tuple(found)


def export(
    wrapper: Any, config: ExecuTorchConfig, *, calibration: Sequence[Arrays], folder: Path, cache: Path
) -> Exported:
    """Trace, quantize, lower (once per ``cache``), write. Raises Rejected with the exporter's own words."""
    try:
        import executorch  # noqa: F401
        import torchao  # noqa: F401
    except ImportError as error:
        raise MissingDependency("executorch", extra="executorch") from error
    from hasten.runtimes.executorch_program import lowered

    if getattr(wrapper, "generative", False):
        raise Rejected("export", "ExecuTorch files hold one pass over the whole input here, not the writing of text")
    made = cache / f"executorch-{config.precision}-{config.group}-{config.rows}"
    try:
        if not (made / FACTS).is_file():
            made.mkdir(exist_ok=True)
            program, facts = lowered(wrapper, config, calibration=calibration)
            write_atomically(made / MODEL, program)
            # Last: with it the folder passes for made.
            write_atomically(made / FACTS, json.dumps(facts, indent=1))
        for name in (MODEL, FACTS):
            shutil.copyfile(made / name, folder / name)
        said = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        names = tuple(given["name"] for given in said["inputs"])
        return Exported(files=(MODEL, FACTS), input_names=names, instructions=(), notes=tuple(said["notes"]))
    except (Rejected, MissingDependency):
        raise
    except Exception as error:  # tracing and lowering raise everything; each is a finding for the ledger
        raise Rejected("export", f"{type(error).__name__}: {str(error).strip()[:300]}") from error


def open(folder: Path, config: ExecuTorchConfig, *, threads: int, cores: tuple[int, ...]) -> Session:
    """Load the program. Raises Rejected for a damaged one, or while another is open here with another thread count."""
    del cores
    try:
        import executorch  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingDependency("executorch", extra="executorch") from error
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        method = _loaded(folder / MODEL, threads=config.threads or threads)
        return ExecuTorchSession(method, facts=facts)
    except Rejected:
        raise
    except Exception as error:
        raise Rejected("open", f"executorch cannot open {MODEL}: {str(error).strip()[:300]}") from error


def _loaded(path: Path, *, threads: int) -> Any:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says on every import that its interface may change
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime
    running = portable_lib._threadpool_get_thread_count()
    if running != threads:
        if len(ExecuTorchSession.opened):
            raise Rejected(
                "open",
                f"a model is open in this process with {running} threads, and {threads} are asked for; they share one "
                "pool: close it first, or open both with as many",
            )
        # Every loaded program holds on to the pool, so it is never changed under one.
        portable_lib._unsafe_reset_threadpool(threads)
    program = Runtime.get().load_program(path)
    # The method lives in its program's memory.
    return program, program.load_method(_METHOD)


class ExecuTorchSession:
    """One loaded method. It has one memory for its values, so calling threads wait for each other."""

    # The pool of threads is the process's, and so is the list of those that use it.
    opened: ClassVar[weakref.WeakSet[ExecuTorchSession]] = weakref.WeakSet()

    def __init__(self, loaded: Any, *, facts: Any) -> None:
        self._loaded, self._turn = loaded, threading.Lock()
        self.opened.add(self)
        self.precision: str = facts["precision"]
        self.input_names = tuple(given["name"] for given in facts["inputs"])
        self._rows, self._tokens = int(facts["rows"]), facts["tokens"]

    def run(self, arrays: Arrays) -> Array:
        given = [np.ascontiguousarray(arrays[name]) for name in self.input_names]
        first = given[0]
        if is_tokens(first) and first.shape[1] > self._tokens:
            raise Rejected(
                "length",
                f"a request of {first.shape[1]} tokens, and this file has memory for {self._tokens}: "
                "export it with calibration rows of that length",
            )
        starts = range(0, len(first), self._rows)
        return np.concatenate([self._call([a[start : start + self._rows] for a in given]) for start in starts])

    def close(self) -> None:
        self._loaded = None
        self.opened.discard(self)

    def _call(self, given: list[Array]) -> Array:
        import torch

        with self._turn:
            outputs = self._loaded[1].execute([torch.from_numpy(array) for array in given])
        return np.array(outputs[0].numpy(), dtype=np.float32)
