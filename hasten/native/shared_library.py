"""Loads the shared library of this room and calls it.

Takes numpy arrays and plain numbers, gives handles and messages. Knows the C interface (`src/interface.cpp`), neither
programs nor models. ctypes releases the interpreter's lock around every call.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.errors import InputError
from hasten.native.build import LIBRARY, stamp
from hasten.native.cache import Cache

Numbers = NDArray[np.float32]
ISA_VARIABLE = "HASTEN_NATIVE_ISA"
_MESSAGE_BYTES = 1024
_REMEDY = "install a C++17 compiler (g++ or clang++) and run: python -m hasten.native"


@functools.cache
def missing() -> str | None:
    """Why the native runtime cannot run here, as a sentence; None where it can."""
    try:
        library()
    except InputError as error:
        return f"{error.got}; {error.remedy}"
    return None


@functools.cache
def library() -> Library:
    """The library, loaded once. Raises InputError where it was not built, or is of other sources."""
    return Library(Path(os.environ.get("HASTEN_NATIVE_LIBRARY", LIBRARY)))


@dataclass(frozen=True, eq=False)
class Step:
    """int32: lengths [S] (rows of each sequence), positions and slots [T], tables [S, blocks]."""

    lengths: NDArray[np.int32]
    positions: NDArray[np.int32]
    slots: NDArray[np.int32]
    tables: NDArray[np.int32]


@dataclass(frozen=True)
class Packed:
    """An open file whose next ``bytes`` are weights that :meth:`Library.save` wrote."""

    file: int
    bytes: int
    checksum: int


class Library:
    """The functions of one shared library file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise InputError(f"no native library at {path}", expected="one that was built", remedy=_REMEDY)
        try:
            self._c = ctypes.CDLL(str(path))
        except OSError as error:
            raise InputError(f"{path} does not load: {error}", expected="a shared library", remedy=_REMEDY) from None
        self._declare()
        if (built := self._c.hasten_stamp().decode()) != stamp():
            raise InputError(
                f"the native library at {path} is of other sources ({built})",
                expected=f"one of these sources ({stamp()})",
                remedy="build it again: python -m hasten.native",
            )

    def _declare(self) -> None:
        pointer, number, text = ctypes.c_void_p, ctypes.c_int64, ctypes.c_char_p
        c = self._c
        c.hasten_stamp.argtypes, c.hasten_stamp.restype = [], text
        c.hasten_isas.argtypes, c.hasten_isas.restype = [], text
        c.hasten_open.argtypes = [
            pointer, number, pointer, pointer, number, pointer, text, number, pointer, number, pointer, text, number,
        ]  # fmt: skip
        c.hasten_open.restype = pointer
        c.hasten_save.argtypes = [pointer, ctypes.c_int32, pointer, text, number]
        c.hasten_save.restype = ctypes.c_int32
        c.hasten_isa_of.argtypes, c.hasten_isa_of.restype = [pointer], text
        c.hasten_run.argtypes = [
            pointer, pointer, pointer, pointer, number, pointer, number, number, pointer, number, text, number,
        ]  # fmt: skip
        c.hasten_run.restype = ctypes.c_int32
        c.hasten_forward.argtypes = [
            pointer, pointer, pointer, pointer, pointer, number, pointer, pointer, pointer, pointer, number, pointer,
            number, text, number,
        ]  # fmt: skip
        c.hasten_forward.restype = ctypes.c_int32
        c.hasten_answer.argtypes, c.hasten_answer.restype = [pointer, number, pointer, text, number], ctypes.c_int32
        c.hasten_close.argtypes, c.hasten_close.restype = [pointer], None

    @property
    def isas(self) -> tuple[str, ...]:
        """Instruction sets that this host runs, best first; the last is "portable"."""
        return tuple(self._c.hasten_isas().decode().split())

    def open(
        self,
        words: NDArray[np.int64],
        arrays: Sequence[NDArray[Any]],
        *,
        threads: int,
        cores: Sequence[int],
        isa: str | None,
        packed: Packed | None = None,
    ) -> tuple[int, int, bool]:
        """A handle, the width of an output row, and whether there is a row a token (else a sequence)."""
        chosen = isa or os.environ.get(ISA_VARIABLE, "")
        if chosen and chosen not in self.isas:
            raise InputError(
                f"the instruction set {chosen!r}", expected=f"one of {', '.join(self.isas)}", remedy="name one of them"
            )
        places = np.array([array.ctypes.data for array in arrays], np.uint64)
        sizes = np.array([array.nbytes for array in arrays], np.int64)
        pinned = np.array(cores, np.int32)
        kept = np.array([packed.file, packed.bytes, packed.checksum] if packed else [-1, 0, 0], np.int64)
        shape = np.zeros(2, np.int64)
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        handle = self._c.hasten_open(
            words.ctypes.data, len(words), places.ctypes.data, sizes.ctypes.data, len(arrays), kept.ctypes.data,
            chosen.encode(), threads, pinned.ctypes.data, len(pinned), shape.ctypes.data, message, _MESSAGE_BYTES,
        )  # fmt: skip
        if not handle:
            raise _refused(message.value)
        return handle, int(shape[0]), bool(shape[1])

    def save(self, handle: int, file: int) -> tuple[int, int]:
        """The packed weights into an open file; how many bytes, and their checksum. Raises InputError."""
        packed, message = np.zeros(2, np.int64), ctypes.create_string_buffer(_MESSAGE_BYTES)
        if self._c.hasten_save(handle, file, packed.ctypes.data, message, _MESSAGE_BYTES):
            raise _refused(message.value)
        return int(packed[0]), int(packed[1])

    def isa_of(self, handle: int) -> str:
        name: bytes = self._c.hasten_isa_of(handle)
        return name.decode()

    def run(
        self,
        handle: int,
        ids: NDArray[np.int32] | None,
        *,
        lengths: NDArray[np.int32],
        types: NDArray[np.int32] | None,
        features: NDArray[np.float32] | None,
        result: NDArray[np.float32],
    ) -> None:
        """Fills ``result``. Raises InputError when ids, lengths and features do not fit the program."""
        for name, array in (("ids", ids), ("types", types)):
            if array is not None and len(array) != int(lengths.sum(dtype=np.int64)):
                raise InputError(
                    f"{len(array)} {name} and lengths that make {int(lengths.sum(dtype=np.int64))}",
                    expected="as many as the lengths make",
                    remedy="give the tokens of all sequences one after the other",
                )
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        width = -1 if features is None else features.shape[1] if features.ndim == 2 else -2
        failed = self._c.hasten_run(
            handle, _place(ids), _place(types), lengths.ctypes.data, len(lengths), _place(features),
            0 if features is None else len(features), width, result.ctypes.data, result.size, message, _MESSAGE_BYTES,
        )  # fmt: skip
        if failed:
            raise _refused(message.value)

    def answer(self, handle: int, output: int) -> tuple[int, bool]:
        """The width of a row in the buffer ``output``, and whether there is a row a token. Raises InputError."""
        shape, message = np.zeros(2, np.int64), ctypes.create_string_buffer(_MESSAGE_BYTES)
        if self._c.hasten_answer(handle, output, shape.ctypes.data, message, _MESSAGE_BYTES):
            raise _refused(message.value)
        return int(shape[0]), bool(shape[1])

    def forward(
        self, handle: int, ids: NDArray[np.int32], step: Step, cache: Cache, *, output: int, result: Numbers
    ) -> Callable[[], None]:
        """What fills ``result`` from the buffer ``output``, as often as it is called and with what the arrays then
        hold. It raises InputError for what does not fit program or cache."""
        places, sizes = cache.places
        kind = {"fp32": 1, "bf16": 2, "int8": 3}[cache.kind]
        shape = np.array([kind, cache.slots, cache.block_size, step.tables.shape[1], len(cache.keys)], np.int64)
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        run, given = self._c.hasten_forward, (
            handle, ids.ctypes.data, step.positions.ctypes.data, step.slots.ctypes.data, step.lengths.ctypes.data,
            len(step.lengths), step.tables.ctypes.data, shape.ctypes.data, places.ctypes.data, sizes.ctypes.data,
            output, result.ctypes.data, result.size, message, _MESSAGE_BYTES,
        )  # fmt: skip
        kept = (ids, step, cache, shape, places, sizes, result)  # whose addresses were taken

        def call(_kept: object = kept) -> None:
            if run(*given):
                raise _refused(message.value)

        return call

    def close(self, handle: int) -> None:
        self._c.hasten_close(handle)


def _place(array: NDArray[Any] | None) -> int | None:
    return None if array is None else array.ctypes.data


def _refused(message: bytes) -> InputError:
    """C++ writes ``got|expected|remedy``."""
    got, expected, remedy = [*message.decode(errors="replace").split("|"), "", "", ""][:3]
    return InputError(got, expected=expected, remedy=remedy)
