"""A model on integer grids as a compressed-tensors checkpoint, which transformers and vLLM can load.

Takes a model in transformers' own form whose matrices a pass has rounded (RTN, GPTQ, AWQ), writes a folder: codes
packed into words, a scale for every group, and a ``quantization_config`` that says so. The grid is seen in the weights
(:mod:`hasten.models.grid_store`), so nothing is rounded again. Codes of fewer bits go into 4, those of 5 to 7 into 8:
for these there are kernels.

What the format cannot say stays as plain weights, by name in ``ignore``: matrices on no grid, grids with an offset
instead of a zero point (HQQ), columns beside the codes (LLM.int8()), groups that do not divide the inputs, embeddings.

Legend: O outputs, I inputs, G groups, b bits.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hasten.models import grid_store
from hasten.models.bit_packing import matrix_shape, unpack_bits
from hasten.models.interchange.words import pack_words
from hasten.records import InputError

FORMAT = "pack-quantized"


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a matrix is kept: ``group`` inputs share a scale (``None``: a row)."""

    bits: int
    group: int | None
    symmetric: bool


def write_compressed(model: Any, folder: Path, *, dtype: torch.dtype) -> tuple[str, ...]:
    """Write config and weights; scales and plain weights in ``dtype``. Says what was kept how.

    Raises InputError for a model without a matrix that the format can say.
    """
    from safetensors.torch import save_file

    odd = next((name for name, module in model.named_modules() if type(module).__name__ == "Conv1D"), None)
    if odd is not None:
        raise InputError(
            f"the matrices of this {model.config.model_type} are stored the other way round (Conv1D), such as {odd}",
            expected="a family whose matrices are linear layers in transformers, too",
            remedy="export it --to gguf or --to hf",
        )
    state, schemes, ignored = compressed_state(model, dtype=dtype)
    if not schemes:
        raise InputError(
            "no matrix of this model lies on a grid of at most 8 bits with zero points",
            expected="a model that the passes rtn, gptq or awq have rounded",
            remedy="round it with hasten optimize --recipe (rtn, gptq or awq, and runtime torch), or export it --to hf",
        )
    # transformers would write the config's own type, and a plain state dict has none
    config = {**model.config.to_diff_dict(), "architectures": [type(model).__name__], "dtype": str(dtype).split(".")[1]}
    config.pop("torch_dtype", None)
    config["model_type"] = model.config.model_type
    config["quantization_config"] = quantization_config(schemes, ignored)
    (folder / "config.json").write_text(json.dumps(config, indent=1, default=str))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)
    return _notes(schemes, ignored)


def compressed_state(model: Any, *, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Scheme], tuple[str, ...]]:
    """The state dict, the scheme of every packed module by name, and the names of linear modules that stay plain."""
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    state = {key: tensor for key, tensor in model.state_dict().items() if key not in tied}
    schemes: dict[str, Scheme] = {}
    ignored = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        found = None if f"{name}.weight" not in state else packed(state[f"{name}.weight"])
        if found is None:
            ignored.append(name)
            continue
        scheme, parts = found
        del state[f"{name}.weight"]
        state |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
        schemes[name] = scheme
    whole = {key: (t.to(dtype) if t.is_floating_point() else t).contiguous() for key, t in state.items()}
    return whole, schemes, tuple(ignored)


def packed(weight: Tensor) -> tuple[Scheme, dict[str, Tensor]] | None:
    """weight_packed int32 [O, ceil(I b / 32)], weight_scale fp32 [O, G], weight_shape int64 [2] and, where the grid
    is not symmetric, weight_zero_point int32 [ceil(O b / 32), G]; ``None`` for what the format cannot say."""
    stored = grid_store.pack(weight.detach().float().contiguous())
    if stored is None or stored.keys() & {"offsets", "columns"}:
        return None
    outputs, inputs, bits, size = matrix_shape(stored["layout"], fields=4)
    if inputs % size:
        return None
    wide = 4 if bits <= 4 else 8
    shape = (outputs, inputs // size)
    codes = unpack_bits(stored["codes"], bits=bits, count=outputs * inputs).view(outputs, inputs)
    parts = {
        "weight_scale": stored["scales"].float().view(shape),
        "weight_shape": torch.tensor([outputs, inputs], dtype=torch.int64),
    }
    if "zeros" in stored:
        zeros = unpack_bits(stored["zeros"], bits=bits, count=shape[0] * shape[1]).view(shape)
        parts["weight_zero_point"] = pack_words(zeros.T.contiguous(), bits=wide).T.contiguous()
    else:  # the middle of the wider codes is the new zero
        codes = codes + (2 ** (wide - 1) - 2 ** (bits - 1))
    parts["weight_packed"] = pack_words(codes, bits=wide)
    return Scheme(wide, None if size == inputs else size, "zeros" not in stored), parts


def quantization_config(schemes: dict[str, Scheme], ignored: tuple[str, ...]) -> dict[str, Any]:
    """The entry of the config; one scheme is said of all linear layers, several of their names."""
    groups = {}
    for number, scheme in enumerate(sorted(set(schemes.values()), key=lambda s: str(asdict(s)))):
        names = [name for name, own in schemes.items() if own == scheme]
        weights = {
            "num_bits": scheme.bits, "type": "int", "symmetric": scheme.symmetric, "dynamic": False,
            "strategy": "channel" if scheme.group is None else "group", "group_size": scheme.group,
            "actorder": None, "block_structure": None, "observer": "minmax", "observer_kwargs": {},
        }  # fmt: skip
        groups[f"group_{number}"] = {
            "targets": ["Linear"] if len(names) == len(schemes) else names, "weights": weights,
            "input_activations": None, "output_activations": None,
        }  # fmt: skip
    return {
        "quant_method": "compressed-tensors", "format": FORMAT, "quantization_status": "compressed",
        "global_compression_ratio": None, "kv_cache_scheme": None, "config_groups": groups, "ignore": list(ignored),
    }  # fmt: skip


def _notes(schemes: dict[str, Scheme], ignored: tuple[str, ...]) -> tuple[str, ...]:
    kinds = Counter(schemes.values())
    said = [
        f"{count} matrices in {s.bits} bits, a scale for "
        + (f"{s.group} inputs" if s.group else "a row") + ("" if s.symmetric else ", with zero points")
        for s, count in kinds.items()
    ]  # fmt: skip
    return (*said, *([f"{len(ignored)} linear layers stay plain, such as {ignored[0]}"] if ignored else []))
