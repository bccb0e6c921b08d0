"""ONNX Runtime on the CPU: fp32, dynamic int8, static int8 (QDQ), and int4 weights with int8 activations.

Takes the task's wrapper, writes one ``model.onnx``; opening needs onnxruntime and
numpy alone. The graph and its quantization are made in ``onnx_graph`` and
``onnx_quantize``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from hasten.records import Config, InputError, MissingDependency, Rejected
from hasten.runtimes.generation_facts import is_generative, read_facts
from hasten.runtimes.runtime import Array, Arrays, Exported, Probe, Session

MODEL, ENCODER = "model.onnx", "encoder.onnx"
_VNNI = ("avx512_vnni", "avx_vnni", "amx_int8")


@dataclass(frozen=True, slots=True)
class OnnxRuntimeConfig:
    """How the graph is fused and quantized.

    ``embeddings``: also hold embedding tables in int8 (smaller, a little slower). ``reduce_range``: 7-bit
    weights, which CPUs without VNNI need to not saturate; ``needs``: the instruction set without which the
    full-range int8 sums of this file are wrong. ``calibration`` matters for ``int8-static`` alone, ``group`` (inputs
    that share a scale) for ``int4``.
    """

    kind: ClassVar[str] = "onnxruntime"
    precision: Literal["fp32", "int8-dynamic", "int8-static", "int4"] = "fp32"
    fusion: bool = True
    per_channel: bool = True
    embeddings: bool = False
    reduce_range: bool = False
    needs: str | None = None
    calibration: Literal["minmax", "percentile", "entropy"] = "minmax"
    group: Literal[32, 64, 128] = 32
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.fusion and self.precision in ("int8-static", "int4"):
            raise InputError(
                f"{self.precision} with fusion=True", expected="fusion=False: fused operators keep fp32 weights there",
                remedy="correct the recipe; the session fuses what it can",
            )  # fmt: skip

    @property
    def grid(self) -> tuple[int, int | None] | None:
        """Bits and group (``None``: an output row) of the integers that weights are rounded to, where training and
        rounding on the same grid beforehand can meet them exactly."""
        if self.precision == "int4":
            return 4, self.group
        dynamic = self.precision == "int8-dynamic" and self.per_channel and not self.reduce_range
        return (8, None) if dynamic else None

    @property
    def label(self) -> str:
        parts = [self.precision.replace("-", " ")]
        parts += [self.calibration] if self.precision == "int8-static" else []
        parts += [f"groups of {self.group}"] if self.precision == "int4" else []
        parts += ["per tensor"] if self.precision != "fp32" and not self.per_channel else []
        parts += ["with embeddings"] if self.embeddings else []
        parts += ["reduced range"] if self.reduce_range else []
        parts += ["unfused"] if not self.fusion and self.precision in ("fp32", "int8-dynamic") else []
        parts += [f"{self.threads} thread{'s' * (self.threads != 1)}"] if self.threads else []
        return " ".join(parts)


def probe() -> Probe:
    """Whether ONNX Runtime is here to run, and the ONNX libraries to export."""
    try:
        found = version("onnxruntime")
    except PackageNotFoundError:
        return Probe(False, reason="onnxruntime is not installed", remedy="pip install 'hasten[onnxruntime]'")
    try:
        exporter = f"onnx {version('onnx')}"
        version("onnxscript")
    except PackageNotFoundError:
        exporter = "runs only; to export: pip install 'hasten[onnxruntime]'"
    return Probe(True, version=found, facts={"export": exporter})


def space(*, instructions: frozenset[str], threads: int) -> tuple[Config, ...]:
    """Dynamic int8 first (it most often wins on one request at a time), then fp32, then static int8."""
    vnni = next((name for name in _VNNI if name in instructions), None)
    make = partial(OnnxRuntimeConfig, needs=vnni, reduce_range=vnni is None and "avx2" in instructions)
    found = [
        make(precision="int8-dynamic"),
        OnnxRuntimeConfig(),
        make(precision="int8-dynamic", embeddings=True),
        make(precision="int8-dynamic", per_channel=False),
        OnnxRuntimeConfig(fusion=False),
    ]
    if threads > 1:
        found.append(make(precision="int8-dynamic", threads=1))
    methods: tuple[Literal["minmax", "percentile", "entropy"], ...] = ("minmax", "percentile", "entropy")
    # The quantizer cannot see through fused operators; the session fuses what it can around the QDQ pairs.
    found += [make(precision="int8-static", calibration=method, fusion=False) for method in methods]
    return (*found, OnnxRuntimeConfig(precision="int4", fusion=False))


def export(
    wrapper: Any, config: OnnxRuntimeConfig, *, calibration: Sequence[Arrays], folder: Path, cache: Path
) -> Exported:
    """Export (once per ``cache``), fuse, quantize. Raises Rejected with the exporter's own words."""
    from hasten.models.precision import kept_fp32
    from hasten.runtimes.onnx_graph import fp32_graph
    from hasten.runtimes.onnx_quantize import quantize_dynamic_graph, quantize_int4_graph, quantize_static_graph

    keep = kept_fp32(wrapper.hf)
    try:
        if getattr(wrapper, "generative", False):
            from hasten.runtimes.onnx_decoder_graph import export_generative

            return export_generative(wrapper, config, example=calibration[0], folder=folder, cache=cache)
        source = fp32_graph(wrapper, example=calibration[0], cache=cache, fusion=config.fusion)
        if config.precision == "int8-dynamic":
            quantize_dynamic_graph(source, folder / MODEL, config=config, keep=keep)
        elif config.precision == "int4":
            quantize_int4_graph(source, folder / MODEL, config=config, keep=keep)
        elif config.precision == "int8-static":
            quantize_static_graph(source, folder / MODEL, config=config, feeds=calibration, keep=keep)
        else:
            (folder / MODEL).write_bytes(source.read_bytes())
    except (Rejected, MissingDependency):
        raise
    except Exception as error:  # exporters and quantizers raise everything; each is a finding for the ledger
        raise Rejected("export", f"{type(error).__name__}: {str(error).strip()[:300]}") from error
    from hasten.runtimes.onnx_graph import input_names

    return Exported(
        files=(MODEL,),
        input_names=input_names(folder / MODEL),
        instructions=(config.needs,) if config.needs else (),
    )


def open(folder: Path, config: OnnxRuntimeConfig, *, threads: int, cores: tuple[int, ...]) -> Session:
    """A session whose threads work during a call and sleep after it."""
    del cores
    count = config.threads or threads
    if not is_generative(folder):
        return OnnxSession(_opened(folder / MODEL, threads=count), precision=config.precision)
    from hasten.runtimes.onnx_decoder import generation_session

    encoder = _opened(folder / ENCODER, threads=count) if (folder / ENCODER).is_file() else None
    decoder = _opened(folder / MODEL, threads=count)
    return generation_session(decoder, encoder, facts=read_facts(folder), precision=config.precision)


def _opened(path: Path, *, threads: int) -> Any:
    """onnxruntime's own session. Raises MissingDependency, or Rejected for a file that it cannot read."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependency("onnxruntime", extra="onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads may spin between the operators of a call, but not between calls.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise Rejected("open", f"onnxruntime cannot open {path.name}: {str(error).strip()[:300]}") from error


class OnnxSession:
    """One onnxruntime session; safe to call from several threads."""

    def __init__(self, session: Any, *, precision: str) -> None:
        self._session, self.precision = session, precision
        self.input_names = tuple(i.name for i in session.get_inputs())

    def run(self, arrays: Arrays) -> Array:
        output: Array = self._session.run(None, {name: arrays[name] for name in self.input_names})[0]
        return np.asarray(output, dtype=np.float32)

    def close(self) -> None:
        self._session = None
