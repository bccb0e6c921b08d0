"""A training on disk: tensors and facts in one file, replaced whole, that is read again only if it is as written.

Takes named tensors and strings, gives them back. Knows nothing of what they mean. The file is not flushed to the disk
at once (it is written twice a minute): a power cut may leave holes in it, and the checksum finds them.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_CHECKSUM = "crc32"


class DamagedState(Exception):
    """The file is not what was written."""


def write_state(path: Path, tensors: Mapping[str, Tensor], *, facts: Mapping[str, str]) -> None:
    """Replace the file. Raises what the library does (a full disk is a SafetensorError), with the old one unchanged."""
    from safetensors.torch import save_file

    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    try:
        save_file(whole, part, metadata={**facts, _CHECKSUM: _checksum(whole)})
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def read_state(path: Path, *, key: str) -> tuple[dict[str, str], dict[str, Tensor]] | None:
    """Facts and tensors; ``None`` without a file, or when its fact ``key`` is another. Raises DamagedState."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as stored:
            facts: dict[str, str] = stored.metadata() or {}
            if facts.get("key") != key:
                return None
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  (not a mapping)
    except (SafetensorError, OSError) as error:
        raise DamagedState(str(error)) from error
    if facts.get(_CHECKSUM) != _checksum(tensors):
        raise DamagedState("its checksum is another")
    return facts, tensors


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    found = 0
    for name in sorted(tensors):
        found = zlib.crc32(_bytes(tensors[name]), zlib.crc32(name.encode(), found))
    return f"{found:08x}"


def identity(
    settings: str, *, modules: Sequence[Any], rows: Sequence[Mapping[str, Any]], targets: Sequence[Any]
) -> str:
    """What makes two trainings the same one: settings, all that the modules hold before the first step (what is frozen
    too), rows and targets."""
    whole = hashlib.sha256(settings.encode())
    for name, tensor in _held(modules):
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole.update(_bytes(tensor))
    for row in (*rows, *({"target": target} for target in targets)):
        for name in sorted(row):
            array = np.ascontiguousarray(row[name])
            whole.update(f"{name} {array.dtype} {array.shape}".encode())
            whole.update(array.tobytes())
    return whole.hexdigest()


def _held(modules: Sequence[Any]) -> Iterator[tuple[str, Tensor]]:
    for module in modules:
        if isinstance(module, nn.Module):
            yield from module.named_parameters()
            yield from module.named_buffers()


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a tensor on the CPU, whatever it holds."""
    plain = tensor.detach().as_subclass(Tensor).contiguous().view(-1)
    array: Any = plain.view(torch.uint8).numpy()  # its stubs do not say that it is a buffer
    return memoryview(array)
