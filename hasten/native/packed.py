"""Opens a stored program with weights that were packed at an earlier time, and keeps them for the next.

Takes a safetensors file, gives an engine. What is kept lies in the user's cache, a file for each content, build of the
library and instruction set: a header and the bytes as kernels read them. Nothing of it is trusted: sizes come from the
program, the bytes have a checksum, and a file that does not fit is written again. It is read into the engine's own
memory: who changes the file later changes nothing here. Where it cannot be kept, everything else works.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import struct
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.errors import InputError
from hasten.native.build import stamp
from hasten.native.engine import Engine
from hasten.native.serialized import Serialized
from hasten.native.shared_library import ISA_VARIABLE, Packed, library

# Smaller programs are packed sooner than a file is found.
WORTH_BYTES = 16 << 20
# All that is kept together; what was used longest ago goes first.
MOST_BYTES = 4 << 30
_MAGIC = b"HASTENPK"
_HEADER = struct.Struct("<8s32sqq")  # magic, key, bytes, checksum
_START = 4096
_TYPES = {"I8": np.int8, "U8": np.uint8, "I16": np.int16, "U16": np.uint16, "F16": np.float16, "I32": np.int32,
          "F32": np.float32, "I64": np.int64}  # fmt: skip
_MOST_HEADER = 1 << 26
# Who was killed while packing leaves a file that nobody will ever finish; nobody packs for so long.
_STAGING, _ABANDONED_S = ".packing-", 3600.0


def packed_folder() -> Path:
    from platformdirs import user_cache_path

    return Path(user_cache_path("hasten")) / "packed"


def open_engine(path: Path, *, threads: int, cores: Sequence[int] | None) -> Engine:
    """Raises InputError for a program that does not hold together, ValueError and OSError for a file that is none."""
    stored = Serialized.of(mapped(path))
    if sum(array.nbytes for array in stored.arrays) < WORTH_BYTES:
        return Engine(stored, threads=threads, cores=cores)
    key = _key(path)
    place = packed_folder() / f"{key.hex()[:32]}.packed"
    found = _kept(place, key, stored, threads=threads, cores=cores)
    if found is not None:
        return found
    engine = Engine(stored, threads=threads, cores=cores)
    with contextlib.suppress(OSError, InputError):  # a full disk, a folder that may not be written
        _keep(engine, place, key)
    return engine


def mapped(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a safetensors file as they lie there: what is not looked at is not read. Raises ValueError."""
    whole = np.memmap(path, np.uint8, mode="r")
    size = int.from_bytes(whole[:8].tobytes(), "little")
    if len(whole) < 8 or not 0 < size <= min(len(whole) - 8, _MOST_HEADER):
        raise ValueError("it does not begin like a file of arrays")
    try:
        header, data = json.loads(whole[8 : 8 + size].tobytes()), whole[8 + size :]
    except RecursionError as error:
        raise ValueError("its header is nested without end") from error
    if not isinstance(header, dict):
        raise ValueError("its header is no table of arrays")
    return {name: _array(data, name, said) for name, said in header.items() if name != "__metadata__"}


def _array(data: NDArray[np.uint8], name: str, said: Any) -> NDArray[Any]:
    given = said if isinstance(said, dict) else {}
    kind, shape, place = _TYPES.get(str(given.get("dtype"))), given.get("shape"), given.get("data_offsets")
    whole = [isinstance(found, list) and all(type(n) is int and n >= 0 for n in found) for found in (shape, place)]
    if kind is None or not all(whole) or not isinstance(shape, list) or not isinstance(place, list) or len(place) != 2:
        raise ValueError(f"its header does not say what {name} is")
    if not place[0] <= place[1] <= len(data) or place[1] - place[0] != math.prod(shape) * np.dtype(kind).itemsize:
        raise ValueError(f"{name} does not lie where its header says")
    return np.asarray(data[place[0] : place[1]]).view(kind).reshape(shape)


def _key(path: Path) -> bytes:
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    isa = os.environ.get(ISA_VARIABLE) or library().isas[0]
    return hashlib.sha256(f"{content} {stamp()} {isa}".encode()).digest()


def _kept(place: Path, key: bytes, stored: Serialized, **settings: Any) -> Engine | None:
    """An engine with the weights of this file; ``None`` where there are none, or damaged ones."""
    try:
        with place.open("rb", buffering=0) as file:
            header = file.read(_START)
            if len(header) < _START:
                return None
            magic, own, size, checksum = _HEADER.unpack_from(header)
            if magic != _MAGIC or own != key or size != os.fstat(file.fileno()).st_size - _START:
                return None
            engine = Engine(stored, **settings, packed=Packed(file.fileno(), size, checksum))
        with contextlib.suppress(OSError):
            os.utime(place)  # when it was used
        return engine
    except (OSError, InputError):
        return None


def _keep(engine: Engine, place: Path, key: bytes) -> None:
    """The whole file or none."""
    place.parent.mkdir(parents=True, exist_ok=True)
    descriptor, staging = tempfile.mkstemp(prefix=_STAGING, dir=place.parent)
    try:
        with os.fdopen(descriptor, "r+b", buffering=0) as file:
            file.seek(_START)
            size, checksum = engine.save(file.fileno())
            file.seek(0)
            file.write(_HEADER.pack(_MAGIC, key, size, checksum).ljust(_START, b"\0"))
        os.replace(staging, place)
    except BaseException:
        Path(staging).unlink(missing_ok=True)
        raise
    _make_room(place)


def _make_room(newest: Path) -> None:
    """Delete what was used longest ago while all together is larger than the bound, never the ``newest``; and what
    was begun and not ended."""
    for path in newest.parent.glob(f"{_STAGING}*"):
        if time.time() - path.stat().st_mtime > _ABANDONED_S:
            path.unlink(missing_ok=True)
    found = [(path.stat().st_mtime, path.stat().st_size, path) for path in newest.parent.glob("*.packed")]
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total > MOST_BYTES and path != newest:
            path.unlink(missing_ok=True)
            total -= size
