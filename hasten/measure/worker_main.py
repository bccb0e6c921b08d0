"""The child process of a :class:`hasten.measure.worker.Worker`.

Takes framed commands on its standard input (8-byte big-endian length, then a pickle), gives framed
replies on what was its standard output; file descriptor 1 itself is pointed at stderr, so that native
libraries which print cannot corrupt the frames. Knows no runtime: sessions come from an opener string.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from hasten.measure.writing import written
from hasten.records import HastenError

HEADER_BYTES = 8
PR_SET_PDEATHSIG = 1
# Native libraries raise their own kind of error where Python would raise MemoryError.
NATIVE_OUT_OF_MEMORY = ("can't allocate memory", "bad_alloc", "Failed to allocate memory", "out of memory")


class Session(Protocol):
    """What an opener must return; the runtimes' sessions satisfy it without knowing this module."""

    input_names: tuple[str, ...]
    precision: str

    def run(self, arrays: Mapping[str, Any]) -> Any: ...

    def close(self) -> None: ...


def write_frame(stream: BinaryIO, payload: bytes) -> None:
    """One message: its length in bytes, then its bytes."""
    stream.write(len(payload).to_bytes(HEADER_BYTES, "big"))
    stream.write(payload)
    stream.flush()


def read_frame(stream: BinaryIO) -> bytes | None:
    """The next message, or ``None`` when the other side is gone, even in the middle of a message."""
    header = stream.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES:
        return None
    size = int.from_bytes(header, "big")
    payload = stream.read(size)
    return payload if len(payload) == size else None


def resolve(name: str) -> Callable[..., Any]:
    """The function that ``"module:function"`` names."""
    module, _, attribute = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    if not callable(found):
        raise TypeError(f"{name} is not a function")
    return found  # type: ignore[no-any-return]


def memory_bytes() -> tuple[int, int]:
    """(peak, current) resident memory of this process, in bytes.

    ``VmHWM`` and not ``ru_maxrss``: on Linux the latter starts at the parent's peak after fork and exec.
    """
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return tuple(int(fields[key].split()[0]) * 1024 for key in ("VmHWM", "VmRSS"))  # type: ignore[return-value]
    import resource

    import psutil  # type: ignore[import-untyped, unused-ignore]

    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peak, int(psutil.Process().memory_info().rss)


def reset_peak() -> None:
    """Makes the peak start anew at the current size, where the kernel can (Linux, /proc writable)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


class Child:
    """Serves commands one by one; holds at most one open session."""

    def __init__(self) -> None:
        self._session: Session | None = None
        self._first_call_ms: float | None = None

    def handle(self, command: str, arguments: Mapping[str, Any]) -> Any:
        """Carries out one command; whatever it raises is the caller's to report."""
        table: dict[str, Callable[..., Any]] = {
            "open": self._open,
            "call": self._call,
            "with_session": self._with_session,
            "run": self._run,
            "time": self._time,
            "stats": self._stats,
        }
        return table[command](**arguments)

    def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _open(self, opener: str, kwargs: Mapping[str, Any]) -> tuple[float, str, tuple[str, ...], int, int]:
        self.close()
        self._first_call_ms = None
        reset_peak()
        _, before_bytes = memory_bytes()
        started = time.perf_counter()
        self._session = resolve(opener)(**kwargs)
        load_s = time.perf_counter() - started
        session = self._opened()
        return load_s, str(session.precision), tuple(session.input_names), memory_bytes()[0], before_bytes

    def _call(self, function: str, kwargs: Mapping[str, Any]) -> Any:
        return resolve(function)(**kwargs)

    def _with_session(self, function: str, kwargs: Mapping[str, Any]) -> Any:
        return resolve(function)(self._opened(), **kwargs)

    def _run(self, batches: Sequence[Mapping[str, Any]], generation: Any) -> tuple[list[Any], float | None]:
        return [self._one(batch, generation)[0] for batch in batches], self._first_call_ms

    def _time(
        self, batches: Sequence[Mapping[str, Any]], generation: Any
    ) -> tuple[list[tuple[float, float]], float | None]:
        return [self._one(batch, generation)[1:] for batch in batches], self._first_call_ms

    def _stats(self) -> tuple[int, int, float]:
        return (*memory_bytes(), time.process_time())

    def _opened(self) -> Session:
        if self._session is None:
            raise RuntimeError("no session is open in this worker")
        return self._session

    def _one(self, batch: Mapping[str, Any], generation: Any) -> tuple[Any, float, float]:
        """One request's output, its milliseconds inside the session alone, and those until the first token."""
        session = self._opened()
        wanted = {name: batch[name] for name in session.input_names}
        if generation is None:
            started = time.perf_counter_ns()
            output = session.run(wanted)
            first_ms = spent_ms = (time.perf_counter_ns() - started) / 1e6
        else:
            output, first_ms, spent_ms = written(session, wanted, generation)
        if self._first_call_ms is None:
            self._first_call_ms = spent_ms
        return output, spent_ms, first_ms


def reply_to(child: Child, payload: bytes) -> bytes:
    """The framed answer to one command: ``(kind, value)`` with kind ok, hasten, memory or error."""
    try:
        command, arguments = pickle.loads(payload)
        return pickle.dumps(("ok", child.handle(command, arguments)), protocol=5)
    except HastenError as error:
        _print_fault()
        return _pickled_error(error)
    except MemoryError as error:
        _print_fault()
        return pickle.dumps(("memory", str(error) or "an allocation failed"))
    except (Exception, SystemExit) as error:
        _print_fault()
        if any(words in str(error) for words in NATIVE_OUT_OF_MEMORY):
            return pickle.dumps(("memory", str(error).splitlines()[0]))
        return pickle.dumps(("error", described(error)))


def _print_fault() -> None:
    """Into the log. A disk that is full must not take the reply with it."""
    with contextlib.suppress(OSError):
        traceback.print_exc()


def described(error: BaseException) -> str:
    """``Type: message (file:line in function)``, the innermost frame."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"


def _pickled_error(error: HastenError) -> bytes:
    try:
        payload = pickle.dumps(("hasten", error))
        pickle.loads(payload)  # an exception whose __init__ does not match its args dumps but does not load
    except Exception:
        return pickle.dumps(("error", described(error)))
    return payload


def die_with_parent(parent: int, *, by_signal: bool) -> None:
    """Makes the kernel kill this process when its parent dies, however busy it is then.

    The kernel ties that signal to the parent's *thread*, so it is asked for only where the parent's main
    thread started us; else, and off Linux, a thread here looks once a second whether we were orphaned.
    """
    if by_signal and sys.platform == "linux":
        import ctypes

        if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0:
            if os.getppid() != parent:  # it died before the request took effect
                os._exit(1)
            return
    threading.Thread(target=_watch_parent, args=(parent,), daemon=True).start()


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def main() -> None:
    """Pins itself to its cores, then serves until its input ends."""
    options = argparse.ArgumentParser()
    options.add_argument("--cores", required=True)
    options.add_argument("--parent", type=int, required=True)
    options.add_argument("--by-signal", action="store_true")
    chosen = options.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(chosen.parent, by_signal=chosen.by_signal)
    if chosen.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in chosen.cores.split(",")})
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    commands = os.fdopen(os.dup(0), "rb")
    with open(os.devnull, "rb") as nothing:  # code that reads stdin must not eat our commands
        os.dup2(nothing.fileno(), 0)
    child = Child()
    with contextlib.suppress(BrokenPipeError):
        write_frame(replies, pickle.dumps(("ok", os.getpid())))
        while (payload := read_frame(commands)) is not None:
            write_frame(replies, reply_to(child, payload))
    with contextlib.suppress(Exception):
        child.close()
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(0)  # native thread pools may hang or crash in their destructors; all that mattered is done


if __name__ == "__main__":
    main()
