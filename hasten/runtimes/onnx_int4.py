"""Int4 weights for ONNX graphs, multiplied with activations that the kernel rounds to int8.

Takes an fp32 graph, writes one whose products with constant matrices are MatMulNBits operators. A matrix is rounded in
groups of consecutive inputs, symmetric: q = clip(round(w / s), -7, 7) with s = max|w| / 7 of the group, the grid that
quantization-aware training and group-wise quantization put weights on, so that nothing moves twice.

Source: the operator is com.microsoft.MatMulNBits (ONNX Runtime's contrib operators): two codes a byte, the first in
the low half, 8 standing for zero; ``accuracy_level`` 4 computes with int8 activations.

Legend: K inputs, N outputs, G groups.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from hasten.records import Rejected
from hasten.runtimes.runtime import Array

_LARGEST, _ZERO = 7, 8
_INT8_ACTIVATIONS = 4
_DOMAIN = "com.microsoft"


def int4_graph(model: Any, target: Path, *, group: int, exclude: Collection[str]) -> None:
    """Write ``model`` (a loaded graph, changed in place) with every other constant matrix in int4.

    Raises Rejected when there is none.
    """
    import onnx

    graph = model.graph
    constants = {i.name: i for i in graph.initializer}
    before = len(graph.initializer)
    for node in [n for n in graph.node if n.op_type == "MatMul" and n.input[1] in constants]:
        matrix = onnx.numpy_helper.to_array(constants[node.input[1]])
        if node.name in exclude or matrix.ndim != 2:
            continue
        codes, scales = packed(matrix.T.astype(np.float32), group=group)
        names = [f"{node.name}.codes", f"{node.name}.scales"]
        graph.initializer.extend(
            onnx.numpy_helper.from_array(a, n) for a, n in zip((codes, scales), names, strict=True)
        )
        product = onnx.helper.make_node(
            "MatMulNBits", [node.input[0], *names], list(node.output), name=node.name, domain=_DOMAIN,
            K=matrix.shape[0], N=matrix.shape[1], bits=4, block_size=group, accuracy_level=_INT8_ACTIVATIONS,
        )  # fmt: skip
        node.CopyFrom(product)
    if len(graph.initializer) == before:
        raise Rejected("export", "the graph has no product with a constant matrix that could be int4")
    _drop_unused(graph)
    if all(o.domain != _DOMAIN for o in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(_DOMAIN, 1))
    onnx.save(model, target)


def packed(weight: Array, *, group: int) -> tuple[Array, Array]:
    """``weight`` [N, K] as codes [N, G, group / 2] in bytes, and scales [N * G]."""
    outputs, inputs = weight.shape
    padded = np.pad(weight, ((0, 0), (0, -inputs % group))).reshape(outputs, -1, group)
    scales = np.abs(padded).max(axis=-1) / _LARGEST
    steps = np.where(scales > 0, scales, 1.0)[..., None]
    codes = (np.clip(np.rint(padded / steps), -_LARGEST, _LARGEST) + _ZERO).astype(np.uint8)
    return codes[..., 0::2] | (codes[..., 1::2] << 4), scales.astype(np.float32).reshape(-1)


def _drop_unused(graph: Any) -> None:
    used = {name for node in graph.node for name in node.input}
    kept = [i for i in graph.initializer if i.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
