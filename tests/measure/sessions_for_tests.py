"""Openers and jobs that the worker tests run in child processes; numpy only."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hasten.records import HastenError, InputError, Rejected


class FakeSession:
    """Sums its input; each call takes ``work_s``, the first one ``first_s`` more: by the clock, or ``of_cpu`` time,
    where others may take the core away."""

    input_names = ("input_ids",)
    precision = "fp32"

    def __init__(
        self, work_s: float = 0.0, first_s: float = 0.0, closed: str | None = None, *, of_cpu: bool = False
    ) -> None:
        self.work_s, self.extra_s, self.closed = work_s, first_s, closed
        self.clock = time.thread_time if of_cpu else time.perf_counter

    def run(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        assert set(arrays) == {"input_ids"}
        end = self.clock() + self.work_s + self.extra_s
        self.extra_s = 0.0
        while self.clock() < end:
            pass
        return arrays["input_ids"].sum(axis=1, keepdims=True).astype(np.float32)

    def close(self) -> None:
        if self.closed is not None:
            Path(self.closed).write_text("closed")


class SleepySession(FakeSession):
    def run(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        time.sleep(0.01)
        return arrays["input_ids"].sum(axis=1, keepdims=True).astype(np.float32)


class FailingSession(FakeSession):
    def run(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        raise ValueError(f"no kernel for {sorted(arrays)}")


class OpenMpSession(FakeSession):
    """Works in torch's OpenMP pool, whose idle threads would spin for long by default."""

    precision = "fp32"

    def run(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        import torch

        x = torch.ones(400, 400)
        for _ in range(20):
            x = torch.softmax(x @ x, dim=-1)
        return x[: len(arrays["input_ids"]), :1].numpy()


def open_open_mp() -> FakeSession:
    return OpenMpSession()


def open_fake(**kwargs: object) -> FakeSession:
    return FakeSession(**kwargs)  # type: ignore[arg-type]


def open_sleepy() -> FakeSession:
    return SleepySession()


def open_failing() -> FakeSession:
    return FailingSession()


def echo(value: object) -> object:
    return value


def facts() -> dict[str, object]:
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    return {
        "cores": tuple(sorted(cores)),
        "omp": os.environ["OMP_NUM_THREADS"],
        "session": os.getsid(0),
        "pid": os.getpid(),
    }


def noisy() -> str:
    os.write(1, b"a native library talks on fd 1\n")
    print("and so does Python")
    return sys.stdin.read()  # must not eat the commands


def user_error() -> None:
    raise InputError("a cat", expected="a dog", remedy="get a dog")


def rejects() -> None:
    raise Rejected("parity", "off by 0.3")


class Stubborn(HastenError):
    """Pickles, but does not unpickle: its constructor wants more than its args."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


def stubborn() -> None:
    raise Stubborn("a", "b")


def plain_error() -> None:
    raise KeyError("layer.7")


def allocate() -> None:
    np.ones(1 << 45, dtype=np.float64)


def allocate_natively() -> None:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")


def unpicklable() -> object:
    return lambda: None


def die(number: int) -> None:
    os.write(2, b"the last words\n")
    os.kill(os.getpid(), number)
    time.sleep(60)


def leave(code: int) -> None:
    os._exit(code)


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def spin(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def fork_and_die() -> None:
    """Dies while a process it forked still holds the reply pipe open."""
    if os.fork() == 0:
        time.sleep(30)
        os._exit(0)
    os._exit(3)


def start_grandchild() -> int:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"]).pid


def grow(megabytes: int) -> int:
    return int(np.ones(megabytes << 17).sum())


@dataclass(frozen=True)
class Asked:
    """What the measures need to know of a generation."""

    new_tokens: int
    ends: tuple[int, ...] = ()
    ignore_ends: bool = False


class Writer:
    """Reads for ``first_s``, then counts up from each row's last id, ``each_s`` a token."""

    input_names = ("input_ids",)
    precision = "fp32"

    def __init__(self, first_s: float = 0.0, each_s: float = 0.0) -> None:
        self.first_s, self.each_s = first_s, each_s

    def run(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        return arrays["input_ids"].astype(np.float32)

    def generate(self, arrays: Mapping[str, np.ndarray], generation: Asked) -> Iterator[np.ndarray]:
        for number in range(generation.new_tokens):
            spin(self.each_s if number else self.first_s)
            yield arrays["input_ids"][:, -1] + number

    def close(self) -> None:
        pass


def open_writer(**kwargs: float) -> Writer:
    return Writer(**kwargs)
