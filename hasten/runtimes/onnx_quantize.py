"""Integers for ONNX graphs: int8 dynamic, int8 static with QDQ pairs, int4 weights.

Takes the fp32 graph, writes the quantized one. Weights are symmetric int8, per
channel unless told otherwise; dynamic activations are u8 per tensor at run time,
static ones are calibrated on the user's calibration rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten.models.precision import belongs_to
from hasten.records import Rejected
from hasten.runtimes.onnx_graph import quiet
from hasten.runtimes.onnx_int4 import int4_graph
from hasten.runtimes.runtime import Arrays

if TYPE_CHECKING:
    from hasten.runtimes.onnxruntime import OnnxRuntimeConfig

# The head (pooler and classifier, exported as Gemm on one vector) stays in fp32: it costs next to nothing, and
# a hidden state's outlier dimensions would leave its int8 input with a handful of levels.
_PRODUCTS = ["MatMul", "Attention"]
_HEADS = (["classifier"], ["qa_outputs"])
_EMBEDDINGS = ["Gather", "EmbedLayerNormalization"]
# Histograms of every activation are kept in memory: a few dozen rows settle them.
_CALIBRATION_ROWS = {"minmax": 128, "percentile": 48, "entropy": 24}
_PERCENTILE = 99.99


def quantize_dynamic_graph(source: Path, target: Path, *, config: OnnxRuntimeConfig, keep: Sequence[str] = ()) -> None:
    """Int8 weights now, activation scales at run time (Q8BERT's dynamic setting); modules in ``keep`` stay fp32."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = _plain_model(source)
    with quiet():
        quantize_dynamic(
            model,
            target,
            nodes_to_exclude=[*_head_nodes(model), *_kept_nodes(model, keep)],
            op_types_to_quantize=_PRODUCTS + (_EMBEDDINGS if config.embeddings else []),
            per_channel=config.per_channel,
            reduce_range=config.reduce_range,
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": 1, "MatMulConstBOnly": True},
        )


def quantize_int4_graph(source: Path, target: Path, *, config: OnnxRuntimeConfig, keep: Sequence[str] = ()) -> None:
    """Int4 weights in groups, int8 activations with scales found at run time."""
    model = _plain_model(source)
    int4_graph(model, target, group=config.group, exclude=[*_head_nodes(model), *_kept_nodes(model, keep)])


def quantize_static_graph(
    source: Path, target: Path, *, config: OnnxRuntimeConfig, feeds: Sequence[Arrays], keep: Sequence[str] = ()
) -> None:
    """QDQ pairs around every product with a constant weight, scales from the calibration rows."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    methods = {
        "minmax": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
        "entropy": CalibrationMethod.Entropy,
    }
    model = _inferred_model(source)
    with quiet():
        quantize_static(
            model,
            str(target),
            _Feeds(feeds[: _CALIBRATION_ROWS[config.calibration]]),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul"],
            nodes_to_exclude=[*_head_nodes(model), *_kept_nodes(model, keep)],
            per_channel=config.per_channel,
            reduce_range=config.reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=methods[config.calibration],
            extra_options={
                "DefaultTensorType": 1,
                "MatMulConstBOnly": True,
                "CalibPercentile": _PERCENTILE,
                # One row at a time: rows of different lengths cannot be stacked into one histogram.
                "CalibStridedMinMax": 1,
            },
        )


def _plain_model(source: Path) -> Any:
    """The graph without inferred shapes: stale ones make the quantizer refuse the model."""
    import onnx

    model = onnx.load(source)
    del model.graph.value_info[:]
    return model


def _head_nodes(model: Any) -> list[str]:
    """Names of the head's products, also as the quantizer renames them when it splits a Gemm; one over all tokens is
    a MatMul."""
    names = [node.name for node in model.graph.node if node.op_type == "Gemm"]
    of_tokens = [n.name for n in model.graph.node if n.op_type == "MatMul" and n.name.split("/")[-2:-1] in _HEADS]
    return [*names, *(f"{name}_MatMul" for name in names), *of_tokens]


def _kept_nodes(model: Any, keep: Sequence[str]) -> list[str]:
    """Names of the products that compute the modules ``keep``. Raises Rejected when one of these cannot be found.

    A fused attention has lost the names of its matrices; the product behind it, its output projection, has kept its
    own, and precision is chosen for all four together.
    """
    if not keep:
        return []
    products = [n for n in model.graph.node if n.op_type == "MatMul"]
    readers = {name: node for node in products for name in node.input}
    fused = {n.name: readers[n.output[0]].name for n in model.graph.node if n.op_type == "Attention"}
    found = [n.name for n in products if belongs_to(n.name, keep)]
    found += [name for name, reader in fused.items() if belongs_to(reader, keep)]
    behind = {name for name in keep if not any(belongs_to(node, [name]) for node in found)}
    if len(behind) > 3 * sum(name in fused for name in found):  # query, key and value of each fused one
        raise Rejected("export", f"the graph has no product for {', '.join(sorted(behind)[:3])}, which must stay fp32")
    return found


def _inferred_model(source: Path) -> Any:
    """The graph with fresh types and shapes: the calibrator watches only tensors whose type it knows."""
    import onnx

    return onnx.shape_inference.infer_shapes(_plain_model(source))


class _Feeds:
    """Calibration rows, one at a time, in the form the quantizer asks for."""

    def __init__(self, feeds: Sequence[Arrays]) -> None:
        self._feeds, self._next, self._end = feeds, 0, len(feeds)

    def get_next(self) -> dict[str, Any] | None:
        if self._next >= self._end:
            return None
        self._next += 1
        return dict(self._feeds[self._next - 1])

    def rewind(self) -> None:
        self._next = 0

    def set_range(self, start_index: int, end_index: int) -> None:
        self._next, self._end = start_index, min(end_index, len(self._feeds))

    def __len__(self) -> int:
        return len(self._feeds)
