"""The growing table of a run: one JSON object per line, only ever appended.

Takes rows (plain mappings, trials, timing samples), gives them back in order. A row
counts once its line ends in a newline and has reached the disk, so a run that is
killed loses at most the row it was writing. Knows no search and no report; it does
not lock: the run holds the lock on its output folder.

Row types: ``run`` (first line: what was asked), ``trial``, ``clock``, ``samples`` and whatever
else a stage writes; readers skip the types they do not know.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from hasten.records import InputError, Trial, read_as

FORMAT_VERSION = 1
FILE_NAME = "trials.jsonl"
Role = Literal["baseline", "chosen"]
Row = dict[str, Any]


# --------------------------------------------------------------------------- rows


def plain(value: Any) -> Any:
    """Records as JSON data that every parser reads.

    Tuples become lists; numpy numbers become Python's; a non-finite float becomes the string ``"NaN"``,
    ``"Infinity"`` or ``"-Infinity"`` (JSON has no such numbers; the typed readers turn it back); a lone
    surrogate in a user's text becomes ``?``.
    """
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, float):
        return _number(float(value))
    if hasattr(value, "tolist"):  # a numpy number or array
        return plain(value.tolist())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item) for item in value)
    if isinstance(value, os.PathLike):
        return plain(os.fspath(value))
    if isinstance(value, Iterable) and not isinstance(value, (bytes, bytearray)):
        return [plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r}")


def _number(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def trial_to_row(trial: Trial) -> Row:
    """One trial as a ledger row of type ``trial``."""
    return {"type": "trial", **plain(trial)}


def trial_from_row(row: Mapping[str, Any]) -> Trial:
    """The inverse of :func:`trial_to_row`; fields of a newer hasten are passed over.

    Raises InputError naming the first field that is missing or ill-typed.
    """
    from pydantic import ValidationError

    try:
        return read_as(Trial, {k: v for k, v in row.items() if k != "type"})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise _damaged(f"a trial row has field {where!r}: {first['msg']}") from error


def samples_row(role: Role, ms: Sequence[float]) -> Row:
    """Raw request times of one side of the final duel, rounded to a tenth of a microsecond."""
    return {"type": "samples", "role": role, "ms": [round(float(t), 4) for t in ms]}


# --------------------------------------------------------------------------- reading


@dataclass(frozen=True, slots=True)
class LedgerRows:
    """All whole rows of a ledger in order, and how many bytes of a torn last line were passed over."""

    rows: tuple[Row, ...]
    torn_bytes: int = 0

    @property
    def header(self) -> Row:
        """The ``run`` row, or an empty one."""
        return self.rows[0] if self.rows and self.rows[0].get("type") == "run" else {}

    def trials(self) -> tuple[Trial, ...]:
        return tuple(trial_from_row(row) for row in self.rows if row.get("type") == "trial")

    def elapsed_s(self) -> float:
        """Seconds that the run had taken when its last trial was written; 0 for a new one."""
        clocks = [row.get("elapsed_s") for row in self.rows if row.get("type") == "clock"]
        return float(clocks[-1]) if clocks and isinstance(clocks[-1], (int, float)) else 0.0

    def samples(self) -> dict[str, tuple[float, ...]]:
        """Milliseconds by role; a later row replaces an earlier one (a resumed run measures again)."""
        rows = (row for row in self.rows if row.get("type") == "samples")
        try:
            return {str(row["role"]): tuple(float(t) for t in row["ms"]) for row in rows}
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(f"a samples row is not readable ({error!r})") from error


def read_rows(path: Path) -> LedgerRows:
    """Read a ledger without changing it; an absent file is an empty one.

    Raises InputError when a line before the last is not a JSON object (that is damage, not a kill).
    """
    if not path.exists():
        return LedgerRows(rows=())
    content = path.read_bytes()
    lines = content.split(b"\n")
    torn = len(lines.pop())  # what follows the last newline was never finished
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        row = _parse(line)
        if row is None and number == len(lines):
            torn += len(line) + 1
        elif row is None:
            raise _damaged(f"{path} line {number} is not a JSON object: {line[:60]!r}")
        else:
            rows.append(row)
    return LedgerRows(rows=tuple(rows), torn_bytes=torn)


def _parse(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # the first also for bytes that are no text
        return None
    return row if isinstance(row, dict) else None


# --------------------------------------------------------------------------- writing


class Ledger:
    """A ledger opened for appending. Every append is on the disk when it returns."""

    def __init__(self, path: Path, *, rows: LedgerRows) -> None:
        """Use :meth:`open`; ``rows`` is what the file already holds, whole."""
        self.path, self.torn_bytes = path, rows.torn_bytes
        self._rows = list(rows.rows)
        self._trials: list[Trial] = []
        self._read = 0  # rows that are among the trials, or none
        self._stream = path.open("ab", buffering=0)

    @classmethod
    def open(cls, path: str | Path, *, run_key: str, header: Mapping[str, Any]) -> Ledger:
        """Open ``path`` to append, making it (with its ``run`` row) if it is not there.

        A torn last line is cut off and its size kept in ``torn_bytes``. Whole rows are never rewritten.
        ``run_key`` identifies the question asked: the same key resumes, another one raises InputError that
        names the settings of ``header`` that differ. A ledger of a newer format raises InputError too.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        found = read_rows(path)
        if found.rows:
            _check_header(path, found.header, run_key=run_key, header=header)
        if found.torn_bytes:
            with path.open("r+b") as stream:
                stream.truncate(path.stat().st_size - found.torn_bytes)
                os.fsync(stream.fileno())
        ledger = cls(path, rows=found)
        if not found.rows:
            ledger.append({"type": "run", "format_version": FORMAT_VERSION, "run_key": run_key, **header})
            _sync_folder(path.parent)
        return ledger

    read = staticmethod(read_rows)

    @property
    def rows(self) -> LedgerRows:
        """All rows: those found at opening and those appended since."""
        return LedgerRows(rows=tuple(self._rows), torn_bytes=self.torn_bytes)

    def trials(self) -> tuple[Trial, ...]:
        """All trials; each row is read once, as this is asked many times a second."""
        fresh, self._read = self._rows[self._read :], len(self._rows)
        self._trials += [trial_from_row(row) for row in fresh if row.get("type") == "trial"]
        return tuple(self._trials)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row through to the disk. On OSError (disk full) the file is as it was before."""
        data: Row = plain(row)
        line = json.dumps(data, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        end = os.fstat(self._stream.fileno()).st_size
        try:
            written = 0
            while written < len(line):
                written += self._stream.write(line[written:]) or 0
            os.fsync(self._stream.fileno())
        except OSError:
            self._stream.truncate(end)
            raise
        self._rows.append(data)

    def append_trial(self, trial: Trial) -> None:
        self.append(trial_to_row(trial))

    def append_clock(self, elapsed_s: float) -> None:
        """Seconds that the run took so far, all its sittings together."""
        self.append({"type": "clock", "elapsed_s": round(elapsed_s, 3)})

    def append_samples(self, role: Role, ms: Sequence[float]) -> None:
        self.append(samples_row(role, ms))

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_header(path: Path, found: Row, *, run_key: str, header: Mapping[str, Any]) -> None:
    version = found.get("format_version")
    if not isinstance(version, int):
        raise _damaged(f"{path} does not begin with a run row")
    if version > FORMAT_VERSION:
        raise InputError(
            f"{path} has format {version}",
            expected=f"format {FORMAT_VERSION} or older",
            remedy="upgrade hasten: pip install --upgrade hasten",
        )
    if found.get("run_key") == run_key:
        return
    asked = plain(header)
    differing = [key for key in asked if key in found and found[key] != asked[key]]
    what = "; ".join(f"{key} was {found[key]!r}, now {asked[key]!r}" for key in differing) or "other settings"
    raise InputError(
        f"{path} is the record of another run ({what})",
        expected="the same model, data and settings, to continue that run",
        remedy="give another --out folder, or delete this one to start afresh",
    )


def _sync_folder(folder: Path) -> None:
    """A new file survives a power cut only when its folder entry is on the disk too (POSIX)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _damaged(what: str) -> InputError:
    return InputError(
        what,
        expected="a ledger as hasten wrote it",
        remedy="restore the file, or delete the output folder and run hasten optimize again",
    )
