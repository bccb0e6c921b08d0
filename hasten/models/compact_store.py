"""A safetensors file in which some matrices take less room: on grids, of many zeros, few values, or 16-bit values.

Takes and gives plain state dicts, bit for bit the same. What can be stored smaller is seen in the weights themselves;
every other tensor lies in the file as it is. A part is named ``hasten.<format>.<part>:<tensor>``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from hasten.models import codebook_store, grid_store, half_store, sparse_store
from hasten.records import InputError

_PREFIX = "hasten."


@dataclass(frozen=True, slots=True)
class Format:
    """How one kind of matrix is taken apart, and put together again."""

    pack: Callable[[Tensor], dict[str, Tensor] | None]
    unpack: Callable[[Mapping[str, Tensor]], Tensor]
    parts: frozenset[str]
    optional: frozenset[str] = frozenset()


# In the order in which they are tried: codes of a grid are numbers that kernels can compute with, and codes are smaller
# than a mask with values where both fit.
FORMATS: Mapping[str, Format] = {
    "grid": Format(grid_store.pack, grid_store.unpack, grid_store.PARTS, grid_store.OPTIONAL),
    "codebook": Format(codebook_store.pack, codebook_store.unpack, codebook_store.PARTS),
    "sparse": Format(sparse_store.pack, sparse_store.unpack, sparse_store.PARTS),
    "half": Format(half_store.pack, half_store.unpack, half_store.PARTS),
}


def packed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors to store: as they are, or in their parts."""
    stored: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        found = next(((kind, parts) for kind in FORMATS if (parts := FORMATS[kind].pack(tensor))), None)
        if found is None:
            stored[name] = tensor
        else:
            stored |= {f"{_PREFIX}{found[0]}.{part}:{name}": content for part, content in found[1].items()}
    return stored


def unpacked(stored: Mapping[str, Tensor], *, where: str) -> dict[str, Tensor]:
    """The inverse. Raises InputError when parts are missing, unknown or do not fit each other; ``where`` names them."""
    weights: dict[str, Tensor] = {}
    groups: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, tensor in stored.items():
        head, colon, name = key.partition(":")
        if not key.startswith(_PREFIX) or not colon:
            weights[key] = tensor
            continue
        kind, _, part = head.removeprefix(_PREFIX).partition(".")
        if kind not in FORMATS or part not in FORMATS[kind].parts | FORMATS[kind].optional:
            raise _broken(where, f"{key} is of no known format")
        groups.setdefault((name, kind), {})[part] = tensor
    for (name, kind), parts in groups.items():
        missing = FORMATS[kind].parts - parts.keys()
        if missing or name in weights:
            raise _broken(where, f"{name} has no {min(missing)}" if missing else f"{name} is there twice")
        try:
            weights[name] = FORMATS[kind].unpack(parts)
        except ValueError as error:
            raise _broken(where, f"{name}: {error}") from error
    return weights


def compact_form(path: Path) -> dict[str, Tensor] | None:
    """What a safetensors file would hold in parts; ``None`` when nothing in it gets smaller."""
    from safetensors.torch import load_file

    weights = load_file(path)
    stored = packed(weights)
    return None if stored.keys() == weights.keys() else stored


def save_compact(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write a state dict compactly."""
    write_stored(packed(weights), path)


def write_stored(stored: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as :func:`packed` gives them: the whole file or none."""
    from safetensors.torch import save_file

    part = path.with_suffix(".part")
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, part, metadata={"format": "pt"})
    part.replace(path)


def load_compact(path: Path) -> dict[str, Tensor]:
    """The state dict of a file, of ours or any other. Raises InputError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        stored = load_file(path)
    except (SafetensorError, OSError) as error:
        raise _broken(str(path), str(error)) from error
    return unpacked(stored, where=str(path))


def _broken(where: str, what: str) -> InputError:
    return InputError(
        f"the weights in {where} cannot be put together: {what}",
        expected="the file as hasten wrote it",
        remedy="build it again with hasten optimize",
    )
