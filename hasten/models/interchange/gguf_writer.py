"""A model as a GGUF file for llama.cpp, written with the ``gguf`` package.

Takes a model in transformers' own form and its tokenizer's files, writes one file. Matrices are stored in the type that
is asked for; vectors, positions and what does not consist of whole blocks of 32 in fp32 or fp16. A matrix that a pass
has put on a grid that the type can say (Q8_0 and Q4_0: symmetric, steps in fp16; Q4_1: with an offset) goes into the
blocks as it is; every other one is rounded again, by ggml's own rule.

Legend: R rows, C columns, N = R C / 32 blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hasten.models import grid_store
from hasten.models.bit_packing import matrix_shape, unpack_bits
from hasten.models.interchange.gguf_families import check_family, describe, laid_out
from hasten.models.interchange.gguf_vocabulary import add_vocabulary
from hasten.records import InputError, MissingDependency

TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1")
Array = np.ndarray[Any, Any]
_BLOCK = 32
_BITS = {"q8_0": 8, "q4_0": 4, "q4_1": 4}
# What llama.cpp's converter never rounds.
_WHOLE = ("position_embd.weight", "token_types.weight")


def write_gguf(model: Any, files: Mapping[str, bytes], path: Path, *, kind: str, name: str) -> tuple[str, ...]:
    """Write ``path``; says how many matrices lie in it how. Raises InputError for a model or a tokenizer that such a
    file cannot say, MissingDependency without ``gguf``."""
    try:
        import gguf
    except ImportError as error:
        raise MissingDependency("gguf", extra="gguf") from error

    architecture = check_family(model)
    writer = gguf.GGUFWriter(path, architecture)
    try:
        writer.add_name(name)
        writer.add_file_type(int(getattr(gguf.LlamaFileType, "ALL_F32" if kind == "f32" else f"MOSTLY_{kind.upper()}")))
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        describe(writer, model)
        add_vocabulary(writer, files, size=model.get_input_embeddings().weight.shape[0])
        counts = _add_weights(writer, model, architecture, kind=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
    return tuple(f"{count} tensors as {what}" for what, count in counts.items())


def _add_weights(writer: Any, model: Any, architecture: str, *, kind: str) -> Counter[str]:
    import gguf

    own = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    names = gguf.get_tensor_name_map(own, model.config.num_hidden_layers)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    counts: Counter[str] = Counter()
    for key, weight in model.state_dict().items():
        if key in tied:
            continue
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise InputError(
                f"the weight {key} has no name in a GGUF file of the architecture {architecture}",
                expected="a model with that family's weights and no others", remedy="export it --to hf",
            )  # fmt: skip
        values = laid_out(key, weight.detach().float(), model.config).contiguous()
        stored, what, said = stored_as(values, kind="f32" if name in _WHOLE else kind)
        writer.add_tensor(name, stored, raw_dtype=None if what == "f32" else gguf.GGMLQuantizationType[what.upper()])
        counts[said] += 1
    return counts


def stored_as(values: Tensor, *, kind: str) -> tuple[Array, str, str]:
    """What to store, its type, and the two in words. Raises InputError for numbers that fp16 cannot hold."""
    from gguf import GGMLQuantizationType, quants

    if values.ndim < 2 or kind == "f32":
        return values.numpy(), "f32", "f32"
    if kind in _BITS and values.shape[1] % _BLOCK:
        kind = "f16"
    if kind == "f16":
        half = values.half()
        if not bool(torch.isfinite(half).all()):
            raise InputError(
                f"a weight of {float(values.abs().max()):g} does not fit into fp16", expected="65504 at most",
                remedy="use --precision bf16 or f32",
            )  # fmt: skip
        return half.numpy(), "f16", "f16"
    exact = grid_blocks(values, kind=kind) if kind in _BITS else None
    if exact is not None:
        return exact, kind, f"{kind}, as they were"
    return quants.quantize(values.numpy(), GGMLQuantizationType[kind.upper()]), kind, kind


def grid_blocks(values: Tensor, *, kind: str) -> Array | None:
    """uint8 [R, bytes of C / 32 blocks] that say exactly these weights [R, C]; ``None`` where the type cannot."""
    parts = grid_store.pack(values)
    if parts is None or "columns" in parts or parts["scales"].dtype != torch.float16:
        return None
    rows, columns, bits, size = matrix_shape(parts["layout"], fields=4)
    if bits > _BITS[kind] or size % _BLOCK or columns % size:
        return None
    middle = 2 ** (bits - 1)
    codes = unpack_bits(parts["codes"], bits=bits, count=rows * columns).view(-1, _BLOCK)
    if kind == "q4_1":
        lowest = _lowest(parts, bits=bits)
        return None if lowest is None else _blocks(rows, size, [parts["scales"], lowest], _halves(codes))
    if parts.keys() & {"zeros", "offsets"}:
        return None
    if kind == "q4_0":
        return _blocks(rows, size, [parts["scales"]], _halves(codes + (8 - middle)))
    return _blocks(rows, size, [parts["scales"]], (codes.to(torch.int16) - middle).to(torch.int8).view(torch.uint8))


def _lowest(parts: Mapping[str, Tensor], *, bits: int) -> Tensor | None:
    """fp16, the weight of code 0 in each group; ``None`` where fp16 does not say one of them."""
    scales = parts["scales"].float()
    if "offsets" in parts:
        found = parts["offsets"].float()
    elif "zeros" in parts:
        found = -scales * unpack_bits(parts["zeros"], bits=bits, count=len(scales)).float()
    else:
        found = -scales * 2 ** (bits - 1)
    return found.half() if torch.equal(found.half().float(), found) else None


def _halves(codes: Tensor) -> Tensor:
    """uint8 [N, 32] -> [N, 16]: number k in the lower half of byte k, number k + 16 in the upper one."""
    return codes[:, : _BLOCK // 2] | codes[:, _BLOCK // 2 :] << 4


def _blocks(rows: int, size: int, heads: list[Tensor], body: Tensor) -> Array:
    """Blocks of fp16 numbers, each the same for a whole group of ``size`` weights, and a body."""
    numbers = [head.repeat_interleave(size // _BLOCK)[:, None].contiguous().view(torch.uint8) for head in heads]
    found: Array = torch.cat([*numbers, body], dim=1).reshape(rows, -1).numpy()
    return found
