"""OpenVINO on the CPU: fp32, bf16, int8 through NNCF with SmoothQuant, and weights alone in int8 or int4.

Takes the task's wrapper, writes ``model.xml`` and ``model.bin``; opening needs
openvino and numpy alone. OpenVINO prepares its kernels anew for each new shape, which
on free lengths makes the slowest calls many times the median: lengths are therefore
padded up to a bucket (the mask hides the padding), and every bucket is run once while
opening.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from hasten.models.precision import belongs_to, kept_fp32
from hasten.records import Config, MissingDependency, Rejected
from hasten.runtimes.generation_facts import check_cache, facts_of, is_generative, read_facts, with_cache
from hasten.runtimes.openvino_compile import compiled_apart
from hasten.runtimes.openvino_files import save_whole
from hasten.runtimes.openvino_weights import with_integer_weights
from hasten.runtimes.runtime import Array, Arrays, Exported, Probe, Session, is_tokens

MODEL, ENCODER = "model.xml", "encoder.xml"
BUCKETS = (
    8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512,
)  # fmt: skip
_WARMED_UP_TO = 64
_CALIBRATION_ROWS = 128
_NAMES = {"f32": "fp32", "bf16": "bf16", "f16": "fp16"}
# Pooler and classifier stay in fp32: they cost next to nothing and see hidden states with outliers.
_HEAD = r".*(pooler|classifier|qa_outputs).*"
_FAST_INT8 = ("amx_int8", "avx512_vnni", "avx_vnni")


@dataclass(frozen=True, slots=True)
class OpenVinoConfig:
    """``smooth_quant_alpha`` balances activations against weights in int8 (0.95 is NNCF's for transformers); ``group``
    (inputs that share a scale) matters for ``int4-weights`` alone. Models that write text know no ``buckets``, and they
    alone know ``kv_cache``: the numbers in which they keep what they have read (``None``: those they compute with)."""

    kind: ClassVar[str] = "openvino"
    precision: Literal["fp32", "bf16", "int8", "int8-weights", "int4-weights"] = "fp32"
    smooth_quant_alpha: float = 0.95
    group: Literal[32, 64, 128] = 64
    buckets: tuple[int, ...] = BUCKETS
    kv_cache: Literal["int8"] | None = None
    needs: str | None = None
    threads: int | None = None

    @property
    def label(self) -> str:
        parts: list[str] = [self.precision.replace("-", " ")]
        parts += [f"groups of {self.group}"] if self.precision == "int4-weights" else []
        if self.precision == "int8":
            parts += ["no smoothing"] if self.smooth_quant_alpha < 0 else [f"SmoothQuant {self.smooth_quant_alpha:g}"]
        parts += [f"{self.kv_cache} cache"] if self.kv_cache else []
        parts += [] if self.buckets else ["free lengths"]
        parts += [f"{self.threads} thread{'s' * (self.threads != 1)}"] if self.threads else []
        return " ".join(parts)


def probe() -> Probe:
    """Whether OpenVINO is here to run, and NNCF to quantize."""
    try:
        found = version("openvino")
    except PackageNotFoundError:
        return Probe(False, reason="openvino is not installed", remedy="pip install 'hasten[openvino]'")
    try:
        quantizer = f"nncf {version('nncf')}"
    except PackageNotFoundError:
        quantizer = "not installed; pip install 'hasten[openvino]'"
    return Probe(True, version=found, facts={"int8": quantizer})


def space(*, instructions: frozenset[str], threads: int) -> tuple[Config, ...]:
    """int8 first, then fp32, bf16 where the CPU multiplies in it, and one thread."""
    vnni = next((name for name in reversed(_FAST_INT8) if name in instructions), None)
    found = [OpenVinoConfig(precision="int8", needs=vnni), OpenVinoConfig()]
    if instructions & {"avx512_bf16", "amx_bf16"}:
        found.append(OpenVinoConfig(precision="bf16"))
    if threads > 1:
        found.append(OpenVinoConfig(precision="int8", needs=vnni, threads=1))
    return tuple(found)


def export(
    wrapper: Any, config: OpenVinoConfig, *, calibration: Sequence[Arrays], folder: Path, cache: Path
) -> Exported:
    """Convert (once per ``cache``), quantize, save. Raises Rejected with the converter's own words."""
    try:
        import openvino
    except ImportError as error:
        raise MissingDependency("openvino", extra="openvino") from error
    generative = getattr(wrapper, "generative", False)
    check_cache(config.kv_cache, generative=generative)
    try:
        if generative and config.precision == "int8":
            raise Rejected("export", "activation scales found on prompts do not hold for single tokens: int8-weights")
        for name, source in _sources(wrapper, example=calibration[0], cache=cache):
            model = openvino.Core().read_model(source)
            if config.precision == "int8":
                keep = kept_fp32(wrapper.hf)
                model = _quantized(model, alpha=config.smooth_quant_alpha, feeds=calibration, keep=keep)
            elif config.precision in ("int8-weights", "int4-weights"):
                bits: Literal[8, 4] = 8 if config.precision == "int8-weights" else 4
                model = with_integer_weights(model, bits=bits, group=config.group, keep=kept_fp32(wrapper.hf))
            openvino.save_model(model, folder / name, compress_to_fp16=False)
    except (Rejected, MissingDependency):
        raise
    except Exception as error:  # converters raise everything; each is a finding for the ledger
        raise Rejected("export", f"{type(error).__name__}: {str(error).strip()[:300]}") from error
    if generative:
        facts_of(wrapper, calibration[0]).write(folder)
    return Exported(
        files=tuple(sorted(path.name for path in folder.iterdir())),
        input_names=tuple(calibration[0]),
        instructions=(config.needs,) if config.needs else (),
    )


def _sources(wrapper: Any, *, example: Arrays, cache: Path) -> list[tuple[str, Path]]:
    """File name and converted graph: one, or two where an encoder has a graph of its own."""
    if not getattr(wrapper, "generative", False):
        return [(MODEL, _converted(wrapper, example=example, cache=cache))]
    from hasten.runtimes.openvino_decoder_graph import generative_sources

    return [(f"{name}.xml", path) for name, path in generative_sources(wrapper, example=example, cache=cache)]


def open(folder: Path, config: OpenVinoConfig, *, threads: int, cores: tuple[int, ...]) -> Session:
    """Compile for latency in exactly the asked precision, and warm the buckets."""
    del cores
    compiled = _compiled(folder / MODEL, config, threads=config.threads or threads)
    if is_generative(folder):
        from hasten.runtimes.openvino_decoder import check_rounded, generation_session

        path = folder / ENCODER
        encoder = _compiled(path, config, threads=config.threads or threads) if path.is_file() else None
        if config.kv_cache is not None:
            check_rounded(compiled)
        runs = with_cache(_precision_that_runs(compiled, config), config.kv_cache)
        return generation_session(compiled, encoder, facts=read_facts(folder), precision=runs)
    session = OpenVinoSession(compiled, config=config)
    session.warm()
    return session


def _compiled(path: Path, config: OpenVinoConfig, *, threads: int) -> Any:
    try:
        import openvino  # noqa: F401
    except ImportError as error:
        raise MissingDependency("openvino", extra="openvino") from error
    # Said out loud: left alone, OpenVINO picks bf16 by itself where the CPU has it, and keeps a cache in 8 bits.
    numbers = "bf16" if config.precision == "bf16" else "f32"
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": numbers,
        "KV_CACHE_PRECISION": numbers if config.kv_cache is None else "u8",
        "CPU_RUNTIME_CACHE_CAPACITY": 4096,
    }
    try:
        return compiled_apart(path, settings)
    except Exception as error:
        raise Rejected("open", f"openvino cannot open {path.name}: {str(error).strip()[:300]}") from error


class OpenVinoSession:
    """One compiled model; every calling thread has a request of its own, so that answers cannot mix."""

    def __init__(self, compiled: Any, *, config: OpenVinoConfig) -> None:
        self._compiled, self._own, self._buckets = compiled, threading.local(), config.buckets
        self.input_names = tuple(i.get_any_name() for i in compiled.inputs)
        self.precision = _precision_that_runs(compiled, config)

    def run(self, arrays: Arrays) -> Array:
        given = {name: arrays[name] for name in self.input_names}
        inputs = self._bucketed(given)
        request = getattr(self._own, "request", None)
        if request is None:
            request = self._own.request = self._compiled.create_infer_request()
        request.infer(inputs, share_inputs=True)
        # A copy: the request's own tensor is overwritten by the next call.
        output = np.array(request.get_output_tensor(0).data, dtype=np.float32)
        # Of every token: what was computed for the bucket's padding is nobody's.
        return output if output.ndim == 2 else output[:, : next(iter(given.values())).shape[1]]

    def warm(self) -> None:
        """Run every small bucket once, so that the first real request of a length is not the slow one."""
        shapes = {i.get_any_name(): i.partial_shape for i in self._compiled.inputs}
        if any(len(shape) != 2 for shape in shapes.values()):
            fixed = {name: [1, *(d.get_length() for d in list(s)[1:])] for name, s in shapes.items()}
            self.run({name: np.zeros(shape, dtype=np.float32) for name, shape in fixed.items()})
            return
        for length in (b for b in self._buckets if b <= _WARMED_UP_TO):
            self.run({name: np.ones((1, length), dtype=np.int64) for name in self.input_names})

    def close(self) -> None:
        self._compiled, self._own = None, threading.local()

    def _bucketed(self, arrays: dict[str, Array]) -> dict[str, Array]:
        """Pad with zeros up to the next bucket: a zero mask hides them. Longer than all buckets: as it is."""
        if not all(is_tokens(array) for array in arrays.values()):
            return arrays
        length = next(iter(arrays.values())).shape[1]
        bucket = next((b for b in self._buckets if b >= length), length)
        if bucket == length:
            return arrays
        return {name: np.pad(array, ((0, 0), (0, bucket - length))) for name, array in arrays.items()}


def _precision_that_runs(compiled: Any, config: OpenVinoConfig) -> str:
    """int8 when the graph holds quantized products, else what the compiled model says of itself; weights alone in
    integers are in the file as they are asked for."""
    if config.precision in ("int8-weights", "int4-weights"):
        return config.precision
    hint = compiled.get_property("INFERENCE_PRECISION_HINT")
    base = _NAMES.get(str(hint.get_type_name()), str(hint.get_type_name()))
    if config.precision != "int8":
        return base
    kinds = {op.get_rt_info()["runtimePrecision"].astype(str) for op in compiled.get_runtime_model().get_ops()}
    return "int8" if kinds & {"i8", "u8"} else base


def _converted(wrapper: Any, *, example: Arrays, cache: Path) -> Path:
    path = cache / "openvino.xml"
    if not path.is_file():
        import openvino

        from hasten.runtimes.onnx_graph import quiet, two_row_example

        with quiet():
            model = openvino.convert_model(wrapper, example_input=two_row_example(example))
        for port, (name, array) in zip(model.inputs, example.items(), strict=True):
            shape = [-1, -1] if is_tokens(array) else [-1, *array.shape[1:]]
            port.get_node().set_partial_shape(openvino.PartialShape(shape))
            port.set_names({name})
        model.validate_nodes_and_infer_types()
        save_whole(model, path)
    return path


def _quantized(model: Any, *, alpha: float, feeds: Sequence[Arrays], keep: Sequence[str]) -> Any:
    """Post-training int8 with SmoothQuant (Xiao et al. 2023) through NNCF's transformer scheme; ``keep`` stays fp32."""
    try:
        import nncf
    except ImportError as error:
        raise MissingDependency("nncf", extra="openvino") from error
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        AdvancedSmoothQuantParameters,
    )

    nncf.set_log_level(logging.ERROR)
    rows = [dict(feed) for feed in feeds[:_CALIBRATION_ROWS]]
    return nncf.quantize(
        model,
        nncf.Dataset(rows),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(rows),
        ignored_scope=nncf.IgnoredScope(patterns=[_HEAD], names=_products_of(model, keep), validate=False),
        advanced_parameters=AdvancedQuantizationParameters(
            smooth_quant_alphas=AdvancedSmoothQuantParameters(matmul=alpha)
        ),
    )


def _products_of(model: Any, keep: Sequence[str]) -> list[str]:
    """Names of the products that compute the modules ``keep``. Raises Rejected when one cannot be found."""
    products = [op.get_friendly_name() for op in model.get_ops() if op.get_type_name() == "MatMul"]
    missing = [name for name in keep if not any(belongs_to(node, [name]) for node in products)]
    if missing:
        raise Rejected("export", f"the graph has no product for {', '.join(missing[:3])}, which must stay fp32")
    return [node for node in products if belongs_to(node, keep)]
