"""One isolated child process that builds, opens and times sessions.

Takes an opener string and arrays, gives outputs, times and resource use. Whatever happens to the child
(an exception, a crash, out of memory, a time limit) comes back as :class:`hasten.records.Rejected`, never
as a dead parent. Knows no runtime. A Worker serves one caller at a time.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import pickle
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from hasten.measure.environment import child_environment
from hasten.measure.host import oom_kills
from hasten.measure.wire import open_log, send_frame, signal_name
from hasten.measure.worker_main import HEADER_BYTES
from hasten.records import HastenError, Rejected

if TYPE_CHECKING:
    import numpy as np

# A fresh interpreter answers within a second or two; on a crowded machine or a cold network disk within minutes.
START_TIMEOUT_S = 180.0
CLOSE_TIMEOUT_S = 5.0
# Nothing that is worth a place in production takes longer; a call that hangs must not hang the run.
CALL_TIMEOUT_S = 900.0
POLL_S = 0.5
READ_BYTES = 1 << 20
TAIL_BYTES = 4096
TAIL_LINES = 3

Batch = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class OpenFacts:
    """What opening a session cost and what really runs in it."""

    load_s: float
    precision: str
    input_names: tuple[str, ...]
    peak_rss_bytes: int
    rss_before_bytes: int


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """Use of the whole child process: resident memory (its peak since the last ``open``, where the kernel can
    reset it, else since the start, and now), CPU seconds of all threads."""

    peak_rss_bytes: int
    rss_bytes: int
    cpu_s: float


class Worker:
    """A child process pinned to its cores; use as a context manager, or call :meth:`close`."""

    def __init__(self, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        self._process = process
        self._errors = errors
        self._errors_start = errors.tell()
        self._first_call_ms: float | None = None
        self._ended: str | None = None
        self._oom_kills = oom_kills()
        self._on_wait: Callable[[], None] | None = None

    @classmethod
    def start(cls, *, cores: tuple[int, ...], threads: int, log: Path | None = None) -> Worker:
        """A fresh process on ``cores`` (none: wherever the system likes) with ``threads`` per native pool.

        Its stderr is appended to ``log``, else kept in a temporary file for the reason of a crash.
        """
        errors: IO[bytes] = tempfile.TemporaryFile() if log is None else open_log(log)  # noqa: SIM115
        command = [sys.executable, "-P", "-m", "hasten.measure.worker_main"]
        command += [f"--cores={','.join(map(str, cores))}", f"--parent={os.getpid()}"]
        if threading.current_thread() is threading.main_thread():
            command.append("--by-signal")
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            bufsize=0,
            env=child_environment(threads),
            start_new_session=True,  # the terminal's Ctrl-C is the parent's to handle
        )
        worker = cls(process, errors)
        try:
            worker._reply("start", START_TIMEOUT_S)
        except BaseException:
            worker.close()
            raise
        return worker

    @property
    def alive(self) -> bool:
        """Can it still be asked?"""
        return self._ended is None and self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def first_call_ms(self) -> float | None:
        """Milliseconds of the first request after the last :meth:`open`; ``None`` before there was one."""
        return self._first_call_ms

    def open(self, opener: str, *, timeout_s: float | None = CALL_TIMEOUT_S, **kwargs: Any) -> OpenFacts:
        """Opens the session that ``opener`` ("module:function") returns for ``kwargs``; closes one before."""
        self._first_call_ms = None
        facts = self._ask("open", timeout_s, opener=opener, kwargs=kwargs)
        return OpenFacts(*facts)

    def call(
        self,
        function: str,
        *,
        timeout_s: float | None = CALL_TIMEOUT_S,
        on_wait: Callable[[], None] | None = None,
        **kwargs: Any,
    ) -> Any:
        """What ``function`` ("module:function") returns for ``kwargs`` in the child.

        ``on_wait`` is called about twice a second until the answer comes, to show progress.
        """
        self._on_wait = on_wait
        try:
            return self._ask("call", timeout_s, function=function, kwargs=kwargs)
        finally:
            self._on_wait = None

    def call_with_session(self, function: str, *, timeout_s: float | None = CALL_TIMEOUT_S, **kwargs: Any) -> Any:
        """Like :meth:`call`, with the open session as the first argument."""
        return self._ask("with_session", timeout_s, function=function, kwargs=kwargs)

    def run(
        self, batches: Sequence[Batch], *, generation: Any = None, timeout_s: float | None = CALL_TIMEOUT_S
    ) -> list[np.ndarray]:
        """The outputs, one array per batch; inputs the session does not name are left out. With a ``generation`` (the
        runtimes') the answers: token ids [B, T], -1 after their end."""
        outputs, self._first_call_ms = self._ask("run", timeout_s, batches=list(batches), generation=generation)
        return list(outputs)

    def time(self, batches: Sequence[Batch], *, timeout_s: float | None = CALL_TIMEOUT_S) -> list[float]:
        """Milliseconds per batch around ``session.run`` alone, taken in the child."""
        return [whole for whole, _ in self.spans(batches, generation=None, timeout_s=timeout_s)]

    def spans(
        self, batches: Sequence[Batch], *, generation: Any, timeout_s: float | None = CALL_TIMEOUT_S
    ) -> list[tuple[float, float]]:
        """Milliseconds per batch: of the whole answer, and until its first token."""
        times, self._first_call_ms = self._ask("time", timeout_s, batches=list(batches), generation=generation)
        return list(times)

    def stats(self) -> WorkerStats:
        return WorkerStats(*self._ask("stats", None))

    def close(self) -> None:
        """Ends the child, kindly at first; safe to call twice."""
        if self._ended is None:
            self._ended = "the worker is closed"
            with contextlib.suppress(OSError):
                self._pipe("stdin").close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(CLOSE_TIMEOUT_S)
        self._kill()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and not issubclass(kind, Exception):
            self._end("interrupted")  # Ctrl-C: no time for a kind end
        self.close()

    # ------------------------------------------------------------------ the wire

    def _ask(self, command: str, timeout_s: float | None, **arguments: Any) -> Any:
        if self._ended is not None:
            raise Rejected("crash", self._ended)
        payload = pickle.dumps((command, arguments), protocol=5)
        try:
            send_frame(self._pipe("stdin"), payload)
        except OSError:
            raise self._crash(command) from None
        except BaseException:
            self._end("interrupted")
            raise
        return self._reply(command, timeout_s)

    def _reply(self, command: str, timeout_s: float | None) -> Any:
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        try:
            size = int.from_bytes(self._read(HEADER_BYTES, command, deadline, timeout_s), "big")
            kind, value = pickle.loads(self._read(size, command, deadline, timeout_s))
        except BaseException:  # whatever a signal handler may raise: the rest of the frame is lost with it
            self._end("interrupted")
            raise
        if kind == "ok":
            return value
        if isinstance(value, HastenError):
            raise value
        if kind == "memory":
            raise Rejected("memory", f"{command} ran out of memory: {value}")
        raise Rejected("error", str(value))

    def _read(self, size: int, command: str, deadline: float, timeout_s: float | None) -> bytes:
        stream = self._pipe("stdout")
        parts = io.BytesIO()
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            while parts.tell() < size:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    self._end(f"the worker was stopped after {timeout_s:g} s")
                    hint = "; is the machine overloaded, or its disk very slow?" if command == "start" else ""
                    raise Rejected("timeout", f"{command} took longer than {timeout_s:g} s{hint}")
                if selector.select(min(POLL_S, left_s)):
                    part = os.read(stream.fileno(), min(READ_BYTES, size - parts.tell()))
                    if not part:
                        raise self._crash(command)
                    parts.write(part)
                elif self._on_wait is not None and self._process.poll() is None:
                    self._on_wait()
                elif self._process.poll() is not None:  # dead, its pipe held open by a process it forked
                    raise self._crash(command)
        return parts.getvalue()

    def _pipe(self, name: str) -> IO[bytes]:
        pipe: IO[bytes] | None = getattr(self._process, name)
        assert pipe is not None
        return pipe

    # ------------------------------------------------------------------ its end

    def _crash(self, command: str) -> Rejected:
        try:
            code = self._process.wait(CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            how = "closed its pipe"
        else:
            how = f"exited with code {code}" if code >= 0 else f"died by {signal_name(-code)}"
        stage = "crash"
        if how.endswith("SIGKILL"):
            stage, hint = self._killer()
            how += f" ({hint})"
        tail = self._tail()
        reason = f"the worker {how} during {command}" + (f"; last words: {tail}" if tail else "")
        self._end(reason)
        return Rejected(stage, reason)

    def _killer(self) -> tuple[str, str]:
        """(stage, hint) of a SIGKILL that was not ours: only the kernel's counter tells who sent it."""
        before, now = self._oom_kills, oom_kills()
        if before is None or now is None:
            return "crash", "out of memory?"
        return ("memory", "out of memory") if now > before else ("crash", "by another process")

    def _tail(self) -> str:
        """The last lines that the child wrote to stderr."""
        with contextlib.suppress(OSError, ValueError):
            end = self._errors.seek(0, os.SEEK_END)
            self._errors.seek(max(self._errors_start, end - TAIL_BYTES))
            lines = self._errors.read().decode(errors="replace").strip().splitlines()
            return " | ".join(line.strip() for line in lines[-TAIL_LINES:])
        return ""

    def _end(self, reason: str) -> None:
        self._ended = self._ended or reason
        self._kill()

    def _kill(self) -> None:
        """Kills the child's whole process group, with whatever compilers it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
