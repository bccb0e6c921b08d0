"""The worker: a child's every end is a result, and nothing outlives its parent."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from hasten.measure import worker as worker_module
from hasten.measure.worker import Worker
from hasten.records import InputError, Rejected

JOBS = "sessions_for_tests"
BATCH = {"input_ids": np.arange(6, dtype=np.int64).reshape(2, 3), "attention_mask": np.ones((2, 3), np.int64)}


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker.start(cores=(min(os.sched_getaffinity(0)),), threads=1) as shared:
        yield shared


def gone(pid: int, within_s: float = 5.0) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_open_run_and_time(worker: Worker) -> None:
    facts = worker.open(f"{JOBS}:open_fake", work_s=0.002, first_s=0.03)
    assert (facts.precision, facts.input_names) == ("fp32", ("input_ids",))
    assert facts.load_s >= 0
    assert facts.peak_rss_bytes > 5_000_000
    assert worker.first_call_ms is None
    outputs = worker.run([BATCH, BATCH])
    np.testing.assert_array_equal(outputs[0], [[3.0], [12.0]])
    assert worker.first_call_ms is not None
    assert worker.first_call_ms >= 32
    times = worker.time([BATCH] * 20)
    assert len(times) == 20
    assert 2.0 <= min(times) < 6.0
    assert worker.first_call_ms >= 32, "later calls leave the first call's time alone"
    worker.open(f"{JOBS}:open_fake")
    assert worker.first_call_ms is None


def test_child_is_pinned_limited_and_in_its_own_session(worker: Worker) -> None:
    facts = worker.call(f"{JOBS}:facts")
    assert facts["cores"] == (min(os.sched_getaffinity(0)),)
    assert facts["omp"] == "1"
    assert facts["session"] == facts["pid"] == worker.pid


def test_output_on_stdout_does_not_break_the_protocol(worker: Worker) -> None:
    assert worker.call(f"{JOBS}:noisy") == ""
    assert worker.call(f"{JOBS}:echo", value=7) == 7


def test_large_messages_cross(worker: Worker) -> None:
    big = np.arange(3_000_000)
    np.testing.assert_array_equal(worker.call(f"{JOBS}:echo", value=big), big)


def test_user_errors_cross_as_they_are(worker: Worker) -> None:
    with pytest.raises(InputError) as caught:
        worker.call(f"{JOBS}:user_error")
    assert (caught.value.got, caught.value.remedy) == ("a cat", "get a dog")
    with pytest.raises(Rejected) as rejected:
        worker.call(f"{JOBS}:rejects")
    assert (rejected.value.stage, rejected.value.reason) == ("parity", "off by 0.3")


@pytest.mark.parametrize(
    ("job", "stage", "words"),
    [
        ("plain_error", "error", ["KeyError", "layer.7", "sessions_for_tests.py", "plain_error"]),
        ("stubborn", "error", ["Stubborn", "ab"]),
        ("unpicklable", "error", ["lambda"]),
        ("missing", "error", ["AttributeError", "missing"]),
        ("allocate", "memory", ["call", "out of memory"]),
        ("allocate_natively", "memory", ["you tried to allocate"]),
    ],
)
def test_other_errors_become_rejections_and_the_worker_lives(
    worker: Worker, job: str, stage: str, words: list[str]
) -> None:
    with pytest.raises(Rejected) as caught:
        worker.call(f"{JOBS}:{job}")
    assert caught.value.stage == stage
    assert all(word in caught.value.reason for word in words), caught.value.reason
    assert worker.call(f"{JOBS}:echo", value=1) == 1


def test_failing_session_and_missing_input(worker: Worker) -> None:
    worker.open(f"{JOBS}:open_failing")
    with pytest.raises(Rejected, match="no kernel for"):
        worker.run([BATCH])
    with pytest.raises(Rejected, match=r"KeyError.*input_ids"):
        worker.run([{"attention_mask": BATCH["attention_mask"]}])


def test_run_without_a_session_says_so() -> None:
    with Worker.start(cores=(), threads=1) as fresh, pytest.raises(Rejected, match="no session is open"):
        fresh.run([BATCH])


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (("die", {"number": signal.SIGKILL}), ["SIGKILL", "(", "the last words"]),
        (("die", {"number": signal.SIGSEGV}), ["SIGSEGV", "during call"]),
        (("leave", {"code": 7}), ["exited with code 7"]),
        (("fork_and_die", {}), ["exited with code 3"]),
    ],
)
def test_death_is_a_rejection_with_its_cause(job: tuple[str, dict[str, int]], words: list[str]) -> None:
    with Worker.start(cores=(), threads=1) as doomed:
        with pytest.raises(Rejected) as caught:
            doomed.call(f"{JOBS}:{job[0]}", **job[1])
        assert caught.value.stage == "crash"
        assert all(word in caught.value.reason for word in words), caught.value.reason
        with pytest.raises(Rejected, match=words[0]):
            doomed.stats()


def test_death_between_calls_is_a_rejection() -> None:
    with Worker.start(cores=(), threads=1) as doomed:
        os.kill(doomed.pid, signal.SIGKILL)
        with pytest.raises(Rejected, match="SIGKILL"):
            doomed.call(f"{JOBS}:echo", value=np.zeros(1 << 20))


def test_timeout_kills_the_child_and_what_it_started() -> None:
    with Worker.start(cores=(), threads=1) as slow:
        grandchild = slow.call(f"{JOBS}:start_grandchild")
        started = time.monotonic()
        with pytest.raises(Rejected, match=r"timeout: call took longer than 0\.3 s"):
            slow.call(f"{JOBS}:sleep", timeout_s=0.3, seconds=60)
        assert time.monotonic() - started < 3
        assert gone(slow.pid)
        assert gone(grandchild)


def test_close_is_kind_and_idempotent(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    worker = Worker.start(cores=(), threads=1, log=tmp_path / "logs" / "worker.log")
    worker.open(f"{JOBS}:open_fake", closed=str(mark))
    worker.call(f"{JOBS}:noisy")
    worker.close()
    worker.close()
    assert mark.read_text() == "closed"
    assert gone(worker.pid)
    assert "a native library talks" in (tmp_path / "logs" / "worker.log").read_text()
    with pytest.raises(Rejected, match="closed"):
        worker.stats()


def test_log_is_appended_and_only_own_words_are_quoted(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text("words of another worker\n")
    with Worker.start(cores=(), threads=1, log=log) as doomed, pytest.raises(Rejected) as caught:
        doomed.call(f"{JOBS}:leave", code=1)
    assert "another" not in caught.value.reason
    assert log.read_text().startswith("words of another")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_log_without_room_takes_no_reply_with_it() -> None:
    with Worker.start(cores=(), threads=1, log=Path("/dev/full")) as worker:
        with pytest.raises(Rejected, match=r"KeyError.*layer\.7"):
            worker.call(f"{JOBS}:plain_error")
        with pytest.raises(InputError, match="a cat"):
            worker.call(f"{JOBS}:user_error")
        assert worker.call(f"{JOBS}:echo", value=1) == 1


def test_interrupt_in_the_parent_ends_the_child() -> None:
    # A shell that puts the tests into the background has them ignore SIGINT.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    worker = Worker.start(cores=(), threads=1)
    timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    timer.start()
    started = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            worker.call(f"{JOBS}:sleep", seconds=60)
    finally:
        signal.signal(signal.SIGINT, previous)
    assert time.monotonic() - started < 5
    assert gone(worker.pid)
    worker.close()


class Alarm(Exception):
    """What a signal handler of the embedding program may raise."""


def test_any_exception_in_the_parent_ends_the_child() -> None:
    def ring(*_: object) -> None:
        raise Alarm

    previous = signal.signal(signal.SIGALRM, ring)
    try:
        with Worker.start(cores=(), threads=1) as worker:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(Alarm):
                worker.call(f"{JOBS}:sleep", seconds=0.6)
            with pytest.raises(Rejected, match="interrupted"):  # and no late reply to the wrong question
                worker.call(f"{JOBS}:echo", value=1)
            assert gone(worker.pid)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)  # rung with no hearer it would end this process
        signal.signal(signal.SIGALRM, previous)


@pytest.mark.parametrize(
    ("counts", "stage", "words"),
    [
        ([3, 4], "memory", "out of memory"),
        ([3, 3], "crash", "another process"),
        ([None, None], "crash", "memory?"),
    ],
)
def test_the_kernel_says_whether_memory_ran_out(
    monkeypatch: pytest.MonkeyPatch, counts: list[int | None], stage: str, words: str
) -> None:
    readings = iter(counts)
    monkeypatch.setattr(worker_module, "oom_kills", lambda: next(readings))
    with Worker.start(cores=(), threads=1) as doomed, pytest.raises(Rejected, match=words) as caught:
        doomed.call(f"{JOBS}:die", number=signal.SIGKILL)
    assert caught.value.stage == stage


def test_a_session_is_not_charged_for_what_ran_before_it() -> None:
    with Worker.start(cores=(), threads=1) as fresh:
        fresh.call(f"{JOBS}:grow", megabytes=200)
        grown = fresh.stats().peak_rss_bytes
        facts = fresh.open(f"{JOBS}:open_fake")
    if facts.peak_rss_bytes == grown:
        pytest.skip("this kernel cannot reset the peak")
    assert facts.rss_before_bytes <= facts.peak_rss_bytes < grown - 150e6


def test_idle_thread_pool_uses_no_cpu() -> None:
    pytest.importorskip("torch")
    with Worker.start(cores=(), threads=2) as worker:
        worker.open(f"{JOBS}:open_open_mp")
        worker.run([BATCH] * 5)
        before = worker.stats().cpu_s
        time.sleep(1.0)
        assert worker.stats().cpu_s - before < 0.05


def test_idle_child_uses_no_cpu(worker: Worker) -> None:
    worker.open(f"{JOBS}:open_fake", work_s=0.001)
    worker.run([BATCH] * 5)
    before = worker.stats().cpu_s
    time.sleep(1.0)
    assert worker.stats().cpu_s - before < 0.02


def test_stats_see_memory_and_cpu() -> None:
    with Worker.start(cores=(), threads=1) as fresh:
        before = fresh.stats()
        fresh.call(f"{JOBS}:grow", megabytes=200)
        fresh.call(f"{JOBS}:spin", seconds=0.3)
        after = fresh.stats()
    assert 190e6 < after.peak_rss_bytes - before.peak_rss_bytes < 260e6
    assert after.rss_bytes < after.peak_rss_bytes
    assert after.cpu_s - before.cpu_s > 0.2


ORPHANS = """
    import sys, threading, time
    from hasten.measure.worker import Worker

    def start():
        worker = Worker.start(cores=(), threads=1)
        print(worker.pid, flush=True)
        call = lambda: worker.call("{jobs}:{job}", seconds=60)
        threading.Thread(target=call, daemon=True).start()
        return worker

    if {in_thread}:
        box = []
        thread = threading.Thread(target=lambda: box.append(start()))
        thread.start()
        thread.join()
        time.sleep(1.0)
        assert box[0]._process.poll() is None, "died with the thread that started it"
        print("alive", flush=True)
    else:
        kept = start()
        print("alive", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("in_thread", [False, True])
@pytest.mark.parametrize("job", ["sleep", "spin"])
def test_no_orphan_after_the_parent_is_killed(job: str, in_thread: bool) -> None:
    script = textwrap.dedent(ORPHANS).format(jobs=JOBS, job=job, in_thread=in_thread)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    with parent, parent.stdout:
        pid = int(parent.stdout.readline())
        assert parent.stdout.readline().strip() == "alive"
        time.sleep(0.2)
        parent.kill()
        assert gone(pid)


def test_rejected_pickles() -> None:
    again = pickle.loads(pickle.dumps(Rejected("memory", "full")))
    assert (again.stage, again.reason) == ("memory", "full")
