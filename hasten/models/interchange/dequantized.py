"""A checkpoint that another program quantized, as an ordinary one with plain floats.

Takes a folder whose config has a ``quantization_config``, writes one with weights in fp32 and a config without such an
entry. What it was before it was quantized is lost: whatever is compared with it is compared with the dequantized
model. Methods that are not in the table, parts that nothing asked for and parts that do not fit are refused.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hasten.models.interchange import awq_layout, bitsandbytes_layout, compressed_layout, gptq_layout
from hasten.models.interchange.parts import Quantized, unreadable
from hasten.records import InputError

ENTRY = "quantization_config"
WEIGHTS = "model.safetensors"


@dataclass(frozen=True, slots=True)
class Layout:
    """How a method keeps a matrix. ``marks``: one of these parts says that a module is quantized; ``needless``: parts
    that say how inputs or caches were rounded."""

    read: Callable[[Mapping[str, Tensor], Quantized], Tensor]
    check: Callable[[Mapping[str, Any]], None]
    marks: frozenset[str]
    parts: frozenset[str]
    needless: frozenset[str] = frozenset()


_BNB = Layout(
    bitsandbytes_layout.read, bitsandbytes_layout.check,
    frozenset({bitsandbytes_layout.MARK_8, bitsandbytes_layout.MARK_4}),
    bitsandbytes_layout.PARTS_8 | bitsandbytes_layout.PARTS_4,
)  # fmt: skip
# Value of "quant_method" -> how its matrices are kept
LAYOUTS: Mapping[str, Layout] = {
    "gptq": Layout(gptq_layout.read, gptq_layout.check, frozenset({gptq_layout.MARK}), gptq_layout.PARTS),
    "awq": Layout(awq_layout.read, awq_layout.check, frozenset({awq_layout.MARK}), awq_layout.PARTS),
    "compressed-tensors": Layout(
        compressed_layout.read, compressed_layout.check, frozenset({compressed_layout.MARK}), compressed_layout.PARTS,
        frozenset({
            "input_scale", "input_zero_point", "output_scale", "output_zero_point", "k_scale", "v_scale", "q_scale",
        }),
    ),
    "bitsandbytes": _BNB,
}  # fmt: skip
# Names that ordinary checkpoints do not have: one that is left over was not understood.
_TELLING = frozenset().union(*(layout.parts | layout.needless for layout in LAYOUTS.values())) - {"weight"}


def is_quantized(config: Mapping[str, Any]) -> bool:
    """Did another program quantize the checkpoint of this config?"""
    return bool(config.get(ENTRY))


def layout_of(config: Mapping[str, Any]) -> Layout:
    """How the checkpoint's matrices are kept. Raises InputError for a method or layout that is not read."""
    entry = config[ENTRY]
    method = str(entry.get("quant_method") or "none") if isinstance(entry, dict) else "none"
    if method == "none" and isinstance(entry, dict) and (entry.get("load_in_8bit") or entry.get("load_in_4bit")):
        method = "bitsandbytes"  # its first files do not name it
    if method not in LAYOUTS:
        raise unreadable(f"a checkpoint quantized by {method[:60]!r}", f"one quantized by {', '.join(LAYOUTS)}")
    LAYOUTS[method].check(entry)
    return LAYOUTS[method]


def write_plain(source: Path, config: Mapping[str, Any], target: Path) -> None:
    """Write config and plain weights of the checkpoint in ``source`` into the empty folder ``target``.

    Raises InputError.
    """
    from safetensors.torch import save_file

    layout = layout_of(config)
    kinds = module_kinds(config)
    stored = _stored(source)
    try:
        weights = plain_weights(stored, layout, config[ENTRY], kinds)
    except (ValueError, KeyError, TypeError, RuntimeError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"the weights in {source} are not what its {ENTRY} says: {str(error)[:300]}",
            expected="every matrix whole, in the layout that the config names",
            remedy="download it again, or use the original checkpoint in 16 or 32 bits",
        ) from error
    save_file(weights, target / WEIGHTS, metadata={"format": "pt"})
    plain = {name: value for name, value in config.items() if name not in (ENTRY, "dtype", "torch_dtype")}
    (target / "config.json").write_text(json.dumps({**plain, "dtype": "float32"}, indent=1))
    own = source / "generation_config.json"
    if own.is_file():
        shutil.copyfile(own, target / own.name)


def plain_weights(
    stored: Mapping[str, Tensor], layout: Layout, entry: Mapping[str, Any], kinds: Mapping[str, str]
) -> dict[str, Tensor]:
    """The state dict with every quantized matrix in fp32. Raises ValueError for parts that do not fit."""
    modules: dict[str, dict[str, str]] = {}
    for key in stored:
        name, part = _split(key, layout.parts)
        if part:
            modules.setdefault(name, {})[part] = key
    quantized = {name: own for name, own in modules.items() if layout.marks & own.keys()}
    used = {key for own in quantized.values() for key in own.values()}
    weights = {key: tensor for key, tensor in stored.items() if key not in used and not _ends(key, layout.needless)}
    left = next((key for key in weights if _ends(key, _TELLING)), None)
    if left is not None:
        raise ValueError(f"{left} belongs to no matrix of this layout")
    if not quantized:
        raise ValueError("no matrix in it is quantized")
    for name, own in quantized.items():
        kind = kinds.get(name, "Linear")
        try:
            found = layout.read({part: stored[key] for part, key in own.items()}, Quantized(entry, name, kind))
        except (ValueError, KeyError) as error:
            raise ValueError(f"{name}: {error}") from error
        if not bool(torch.isfinite(found).all()):
            raise ValueError(f"{name} has weights that are not finite")
        weights[f"{name}.weight"] = (found.T if kind == "Conv1D" else found).contiguous()
    return weights


def module_kinds(config: Mapping[str, Any]) -> dict[str, str]:
    """The name of every module of the checkpoint's model -> its class. Raises InputError for a class of its own."""
    import transformers

    name = str((config.get("architectures") or ["none"])[0])
    cls = getattr(transformers, name, None)
    if cls is None or not issubclass(cls, transformers.PreTrainedModel):
        raise unreadable(f"a quantized {name}", "a class that transformers itself has")
    plain = {key: value for key, value in config.items() if key != ENTRY}
    with torch.device("meta"):
        model: nn.Module = cls(cls.config_class.from_dict(plain))
    return {name: type(module).__name__ for name, module in model.named_modules()}


def _stored(source: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    found: dict[str, Tensor] = {}
    for path in sorted(source.glob("model*.safetensors")):
        found |= load_file(path)
    return found


def _split(key: str, parts: frozenset[str]) -> tuple[str, str]:
    """A tensor's name as its module's and the longest part that it ends in; ("", "") for neither."""
    fitting = [part for part in parts if key.endswith(f".{part}")]
    part = max(fitting, key=len, default="")
    return (key[: -len(part) - 1], part) if part else ("", "")


def _ends(key: str, parts: frozenset[str]) -> bool:
    return any(key.endswith(f".{part}") for part in parts)
