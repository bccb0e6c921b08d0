"""How many bytes a decoder reads from memory to write one more token.

Takes what a runtime exported, or a loaded checkpoint; gives bytes. A step reads every weight but those of tables whose
rows are only looked up, and the keys and values of all tokens before it, as far as a layer's window reaches. Runs in a
worker: it opens the runtimes' own libraries.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten.native.packed import mapped
from hasten.native.serialized import Serialized, read_in_whole
from hasten.records import ModelRef
from hasten.runtimes.native_generation import cache_kind

_HEADS = ("lm_head.weight", "embed_out.weight")
_WORDS = ("embed_tokens.weight", "wte.weight", "shared.weight")
_POSITIONS = ("wpe.weight", "embed_positions.weight")
_ENCODER = ("encoder.", "model.encoder.")
# What stands between a table as it is stored and the rows that are picked from it.
_UNPACKING = frozenset({"Cast", "Convert", "DequantizeLinear", "Identity", "Multiply", "Reshape", "Subtract"})
_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}


@dataclass(frozen=True, slots=True)
class Kept:
    """What one layer keeps of a token: ``numbers`` of keys and values together. Only the last ``window`` tokens are
    read, ``None``: all of them."""

    numbers: int
    window: int | None


def cache_bytes(layers: Sequence[Kept], *, tokens: float, precision: str) -> float:
    """Bytes of the keys and values of ``tokens``, in numbers of ``precision``; a scale for every 8-bit vector is left
    out."""
    read = sum(layer.numbers * min(tokens, tokens if layer.window is None else layer.window) for layer in layers)
    return read * _BYTES[precision]


def cache_precision(runtime: Mapping[str, Any]) -> str:
    """In which numbers a runtime's config keeps keys and values."""
    own, numbers = runtime.get("kv_cache"), str(runtime.get("precision"))
    if runtime.get("kind") == "native":
        return cache_kind(numbers, own)
    return str(own) if own in _BYTES else "bf16" if numbers == "bf16" else "fp32"


def kept_by(*, ref: ModelRef, task: str) -> tuple[Kept, ...] | None:
    """Of every layer of a checkpoint's decoder; ``None`` where it looks at an encoder too."""
    from hasten.models import adapter_for
    from hasten.pipeline.jobs import loaded

    found = loaded(ref, task)
    config = found.model.config
    if getattr(config, "is_encoder_decoder", False):
        return None
    adapter = adapter_for(found.family)
    if adapter is not None:
        parts = [adapter.attention(layer) for layer in adapter.layers(found.model)]
        numbers = [2 * part.groups * part.head_dim for part in parts]
    else:
        heads = int(config.num_attention_heads)
        width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        numbers = [2 * int(getattr(config, "num_key_value_heads", None) or heads) * width] * config.num_hidden_layers
    return tuple(Kept(count, window) for count, window in zip(numbers, _windows(config, len(numbers)), strict=True))


def _windows(config: Any, layers: int) -> list[int | None]:
    window = getattr(config, "sliding_window", None)
    if not window or getattr(config, "use_sliding_window", True) is False:
        return [None] * layers
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * layers
    return [int(window) if kind == "sliding_attention" else None for kind in kinds[:layers]]


# ------------------------------------------------------------------ weights


def weight_bytes(*, folder: Path, kind: str) -> int | None:
    """Bytes of the weights that a step reads, of an exported model; ``None`` of a runtime whose files nobody here can
    read."""
    reader = _READERS.get(kind)
    return None if reader is None else reader(folder)


def _of_safetensors(folder: Path) -> int:
    """A Hugging Face folder: matrices that are tied lie in it once."""
    sizes: dict[str, int] = {}
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        header.pop("__metadata__", None)
        sizes |= {name: entry["data_offsets"][1] - entry["data_offsets"][0] for name, entry in header.items()}
    apart = any(name.endswith(_HEADS) for name in sizes)
    looked_up = (*_POSITIONS, *(_WORDS if apart else ()))
    return sum(size for name, size in sizes.items() if not name.endswith(looked_up) and not name.startswith(_ENCODER))


def _of_onnx(folder: Path) -> int:
    import math

    import onnx

    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    item = onnx.helper.tensor_dtype_to_np_dtype
    sizes = {i.name: math.prod(i.dims) * item(i.data_type).itemsize for i in graph.initializer}
    nodes = [(str(node.op_type), list(node.input), list(node.output)) for node in graph.node]
    return _read(sizes, nodes)


def _of_native(folder: Path) -> int:
    return read_in_whole(Serialized.of(mapped(folder / "model.safetensors")))


def _of_openvino(folder: Path) -> int:
    return openvino_bytes(folder / "model.xml")


def openvino_bytes(path: Path) -> int:
    """The same of one graph, whoever wrote it."""
    import math

    import openvino

    model = openvino.Core().read_model(path)
    sizes: dict[str, int] = {}
    nodes: list[tuple[str, list[str], list[str]]] = []
    for op in model.get_ordered_ops():
        name = op.get_friendly_name()
        if op.get_type_name() == "Constant":
            bits = int(op.get_output_element_type(0).bitwidth)
            sizes[name] = math.prod(op.get_output_shape(0)) * bits // 8
        else:
            nodes.append((op.get_type_name(), [i.get_node().get_friendly_name() for i in op.input_values()], [name]))
    return _read(sizes, nodes)


def _read(sizes: Mapping[str, int], nodes: Iterable[tuple[str, list[str], list[str]]]) -> int:
    """Bytes of the constants, without tables that nothing but a choice of rows uses.

    ``nodes`` are (operator, what it takes, what it gives) in the graph's order; an operator that unpacks constants
    gives the same constants.
    """
    held: dict[str, frozenset[str]] = {name: frozenset([name]) for name in sizes}
    whole: set[str] = set()
    picked: set[str] = set()
    for kind, taken, given in nodes:
        real = [name for name in taken if name]
        if kind in _UNPACKING and real and all(name in held for name in real):
            held |= dict.fromkeys(given, frozenset().union(*(held[name] for name in real)))
            continue
        choice = kind.startswith("Gather")
        for place, name in enumerate(real):
            (picked if choice and place == 0 else whole).update(held.get(name, ()))
    return sum(size for name, size in sizes.items() if name in whole or name not in picked)


_READERS: Mapping[str, Callable[[Path], int]] = {
    "torch": _of_safetensors,
    "onnxruntime": _of_onnx,
    "openvino": _of_openvino,
    "native": _of_native,
}
