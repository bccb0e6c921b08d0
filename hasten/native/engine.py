"""Runs a flat program on the CPU through the shared library of this room.

Takes a `Program` (or its serialized form) and ragged batches of token ids, gives fp32 rows. Knows no models, no torch;
the interpreter's lock is released while a batch runs, and calls from several threads wait for each other.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hasten.errors import InputError
from hasten.native.cache import Cache
from hasten.native.program import Program
from hasten.native.serialized import Serialized, serialize
from hasten.native.shared_library import Library, Packed, Step, library

Integers = NDArray[np.int32] | Sequence[int]
NOTHING = -1


class Engine:
    """One program with its packed weights, threads and scratch memory. ``close`` (or ``with``) gives them back.

    ``threads``: how many threads compute, the caller's among them. ``cores``: the processors that they are pinned to,
    one each (the caller's thread is not, but leaves those of the others); none: wherever the system likes. ``isa``: a
    lower instruction set than the host's best, for tests; ``HASTEN_NATIVE_ISA`` says the same. ``packed``: the weights
    as an engine of the same program packed them (`save`), which is not done again.

    Raises InputError for a program that does not hold together, and without the library.
    """

    def __init__(
        self,
        program: Program | Serialized,
        *,
        threads: int = 1,
        cores: Sequence[int] | None = None,
        isa: str | None = None,
        packed: Packed | None = None,
    ) -> None:
        self._handle: int | None = None
        self._lock = threading.Lock()
        self._library: Library = library()
        stored = serialize(program) if isinstance(program, Program) else program
        self._answers: dict[int, tuple[int, bool]] = {}
        self._handle, self._width, self._by_token = self._library.open(
            stored.words, stored.arrays, threads=threads, cores=tuple(cores or ()), isa=isa, packed=packed
        )
        self._program_output = stored.output

    def save(self, file: int) -> tuple[int, int]:
        """The packed weights into an open file (a descriptor): their bytes and checksum. Raises InputError."""
        with self._lock:
            return self._library.save(self._opened(), file)

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        return self._library.isa_of(self._opened())

    def run(
        self,
        ids: Integers | None,
        *,
        lengths: Integers,
        types: Integers | None = None,
        features: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """fp32 [T, N] for an output a token, [S, N] for one a sequence.

        ``ids`` int32 [T]: the tokens of all sequences, one sequence after the other; ``lengths`` int32 [S]: tokens of
        each, at least 1, T in all; ``types`` int32 [T] (token type ids) or None for zeros; ``features`` fp32 [T, F]
        for programs that begin with Features. Raises InputError.
        """
        sizes = _integers(lengths, name="lengths")
        rows = max(0, int(sizes.sum(dtype=np.int64))) if self._by_token else sizes.size
        result = np.empty((rows, self._width), np.float32)
        places = None if ids is None else _integers(ids, name="ids")
        kinds = None if types is None else _integers(types, name="types")
        given = None if features is None else np.ascontiguousarray(features, np.float32)
        with self._lock:
            self._library.run(self._opened(), places, lengths=sizes, types=kinds, features=given, result=result)
        return result

    def forward(
        self,
        ids: Integers,
        *,
        positions: Integers,
        slots: Integers,
        tables: NDArray[np.int32],
        lengths: Integers,
        cache: Cache,
        output: int | None = None,
    ) -> NDArray[np.float32]:
        """One step of a decoder: rows of prompts and of single new tokens, mixed as they come. Result as in `run`.

        ``output``: the buffer of a `Top` in the place of the program's output; NOTHING for no answer [0, 0], where a
        part of a prompt is only read.

        ``ids``, ``positions``, ``slots`` int32 [T]: each row's token, its place in its sequence (rising within a call)
        and the slot that its keys and values go to (-1: nowhere); ``lengths`` int32 [S]: this call's rows of each
        sequence; ``tables`` int32 [S, blocks]: where the sequence's tokens lie in ``cache``, as far as its last row
        sees. The caller sees to it that slots and tables agree. Raises InputError.
        """
        sizes, tokens = _integers(lengths, name="lengths"), _integers(ids, name="ids")
        blocks = np.ascontiguousarray(tables, np.int32)
        step = Step(sizes, _integers(positions, name="positions"), _integers(slots, name="slots"), blocks)
        rows = int(sizes.sum(dtype=np.int64))
        if (
            blocks.ndim != 2
            or len(blocks) != len(sizes)
            or any(len(part) != rows for part in (tokens, step.positions, step.slots))
        ):
            raise InputError(
                f"{len(tokens)} ids, {len(step.positions)} positions, {len(step.slots)} slots, tables of shape "
                f"{blocks.shape} and lengths that make {rows}",
                expected="as many of each as the lengths make, and a table a sequence",
                remedy="give the rows of all sequences one after the other",
            )
        with self._lock:
            made = self._program_output if output is None else output
            result = np.empty(self._shape(made, rows, sizes.size), np.float32)
            self._library.forward(self._opened(), tokens, step, cache, output=made, result=result)()
        return result

    def writing(self, tables: NDArray[np.int32], *, cache: Cache, output: int) -> Writing:
        """:meth:`forward` for one token of each sequence of ``tables`` [S, blocks], which may go on changing."""
        ones = np.ones(len(tables), np.int32)
        step = Step(ones, np.zeros_like(ones), np.zeros_like(ones), tables)
        with self._lock:
            result = np.empty(self._shape(output, len(tables), len(tables)), np.float32)
            return Writing(self, step, cache, output, result)

    def _shape(self, output: int, rows: int, sequences: int) -> tuple[int, int]:
        """Of the answer in a buffer."""
        if output == NOTHING:
            return 0, 0
        if output not in self._answers:
            self._answers[output] = self._library.answer(self._opened(), output)
        width, by_token = self._answers[output]
        return rows if by_token else sequences, width

    def close(self) -> None:
        """Ends the threads and frees the memory. A second call does nothing."""
        with self._lock:
            handle, self._handle = self._handle, None
            if handle is not None:
                self._library.close(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()

    def _opened(self) -> int:
        if self._handle is None:
            raise InputError(
                "a native engine that was closed", expected="an open engine", remedy="open another one for the program"
            )
        return self._handle


class Writing:
    """One token more of each sequence, call after call. Arrays stay where they are: between two tokens weights drive
    Python out of the caches, and whatever a call need not make anew is time.

    ``ids``, ``positions``, ``slots`` int32 [S]: to be filled before each :meth:`step`, as for `Engine.forward`.
    """

    def __init__(self, engine: Engine, step: Step, cache: Cache, output: int, result: NDArray[np.float32]) -> None:
        self.ids, self.positions, self.slots = np.zeros_like(step.lengths), step.positions, step.slots
        self._engine, self._given, self._result = engine, (step.tables, cache, output), result
        handle = engine._opened()
        self._call = engine._library.forward(handle, self.ids, step, cache, output=output, result=result)

    def goes_on(self, tables: NDArray[np.int32], cache: Cache, output: int) -> bool:
        """Is it for these?"""
        own_tables, own_cache, own_output = self._given
        return tables is own_tables and cache is own_cache and output == own_output

    def step(self) -> NDArray[np.float32]:
        """The output's rows, until the next call. Raises InputError."""
        with self._engine._lock:
            self._engine._opened()
            self._call()
        return self._result


def _integers(values: Any, *, name: str) -> NDArray[np.int32]:
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputError(
            f"{name} of shape {array.shape} and kind {array.dtype}",
            expected="a flat list of integers",
            remedy="concatenate the sequences without padding",
        )
    if array.dtype != np.int32 and array.size and not -(2**31) <= array.min() <= array.max() < 2**31:
        raise InputError(f"{name} of up to {array.max()}", expected="32-bit integers", remedy="look at the tokenizer")
    return np.ascontiguousarray(array, np.int32)
