"""The command line: quick help, helpful refusals, exit codes, JSON."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hasten.cli import main

PROGRAM = [sys.executable, "-m", "hasten"]
Done = subprocess.CompletedProcess[str]


def hasten(*arguments: str | Path) -> Done:
    return subprocess.run([*PROGRAM, *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The same program in this process, for commands that end before anything is loaded."""

    def run(*arguments: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["hasten", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Done(sys.argv, ended.value.code, said.out, said.err)

    return run


def test_help_is_quick_and_lists_every_verb() -> None:
    times = []
    for _ in range(3):
        started = time.perf_counter()
        done = hasten("--help")
        times.append(time.perf_counter() - started)
    assert all(
        verb in done.stdout for verb in ("optimize", "demo", "doctor", "size", "run", "bench", "check", "report")
    )
    assert min(times) < 1.0  # the published figure is measured on an idle machine; this catches a heavy import


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--budget", "p95_ms<20"), "^"),
        (("--budget", "speed<=3"), "speedup"),
        (("--time", "soon"), "--time"),
        (("--task", "text-clasification"), "did you mean text-classification"),
        (("--runtimes", "onnxruntim"), "did you mean onnxruntime"),
        (("--techniques", "int8-dynamik"), "did you mean int8-dynamic"),
        (("--threads", "99"), "--threads 99"),
        (("--data", "no-such.csv"), "no such file"),
        (("--out", "{data}"), "is a file"),
    ],
)
def test_bad_input_is_explained_and_leaves_nothing(
    arguments: tuple[str, ...], message: str, checkpoint: Callable[[str], Path], tmp_path: Path,
    here: Callable[..., Done],
) -> None:  # fmt: skip
    data = tmp_path / "rows.csv"
    data.write_text("text,label\n" + "".join(f"w{i % 50} w{i},{i % 3}\n" for i in range(60)))
    options = {"--task": "text-classification", "--data": str(data), "--out": str(tmp_path / "out")}
    options |= dict(zip(arguments[::2], (a.format(data=data) for a in arguments[1::2]), strict=True))
    done = here("optimize", checkpoint("bert"), *(word for pair in options.items() for word in pair))
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert "to do:" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "code_of"),
    [
        ("DiskFull('a', expected='b', remedy='c')", 74),
        ("OSError(28, 'No space left')", 74),
        ("RuntimeError('I/O error: No space left on device (os error 28)')", 74),
        ("OSError(30, 'Read-only file system')", 2),
    ],
)
def test_a_full_disk_has_an_exit_code_of_its_own(error: str, code_of: int, tmp_path: Path) -> None:
    code = (
        "import sys, hasten.pipeline\nfrom hasten.cli import main\nfrom hasten.errors import DiskFull\n"
        f"def fails(*a, **k): raise {error}\n"
        "hasten.pipeline.optimize = fails\n"
        f"sys.argv[1:] = ['optimize', 'm', '--task', 'x', '--out', {str(tmp_path)!r}]\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == code_of, done.stderr
    assert "to do:" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("verb", ["run", "check", "report"])
def test_verbs_on_something_else(verb: str, tmp_path: Path, here: Callable[..., Done]) -> None:
    done = here(verb, tmp_path, *(("--data", tmp_path / "x.csv") if verb == "run" else ()), "--json")
    assert done.returncode == 2
    assert "to do:" in json.loads(done.stdout)["error"]


def test_a_folder_with_other_things_is_left_alone(
    checkpoint: Callable[[str], Path], tmp_path: Path, here: Callable[..., Done]
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    done = here(
        "optimize", checkpoint("bert"), "--task", "text-classification", "--data", tmp_path / "x.csv",
        "--out", tmp_path, "--overwrite",
    )  # fmt: skip
    assert done.returncode == 2
    assert "holds something else" in done.stderr
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_doctor_reports_every_runtime_as_json() -> None:
    done = hasten("doctor", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["runtimes"]) == {"torch", "onnxruntime", "openvino", "native", "executorch"}
    assert all(probe["available"] or probe["remedy"] for probe in found["runtimes"].values())
    assert found["host"]["cores"] >= 1


@pytest.mark.parametrize("arguments", [["optimize", "m"], ["run", "b", "--data", "t", "--batch", "x"], ["frobnicate"]])
def test_usage_errors_are_json_too(arguments: list[str], here: Callable[..., Done]) -> None:
    done = here(*arguments, "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["exit_code"] == 2


def test_a_failed_prediction_leaves_no_file(tmp_path: Path, here: Callable[..., Done]) -> None:
    (tmp_path / "rows.csv").write_text("text\na\n")
    done = here("run", str(tmp_path), "--data", str(tmp_path / "rows.csv"), "--out", str(tmp_path / "p.jsonl"))
    assert done.returncode == 2
    assert {p.name for p in tmp_path.iterdir()} == {"rows.csv"}


def test_what_is_no_file_stays_what_it_is(tmp_path: Path) -> None:
    """As root, a file that is renamed over /dev/null breaks the machine."""
    import os
    import threading

    from hasten.cli.output import emit_lines

    os.mkfifo(tmp_path / "pipe")
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.append((tmp_path / "pipe").read_text()))
    reader.start()
    emit_lines([{"a": 1}], out=tmp_path / "pipe", as_json=False)
    reader.join(10)
    assert said == ['{"a": 1}\n']
    assert (tmp_path / "pipe").is_fifo()
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]


def test_a_folder_for_predictions_that_is_not_there(tmp_path: Path, here: Callable[..., Done]) -> None:
    done = here("run", str(tmp_path), "--data", "rows.csv", "--out", str(tmp_path / "nowhere" / "p.jsonl"))
    assert done.returncode == 2
    assert "an existing folder for --out" in done.stderr


def test_a_polite_wish_to_end_is_ctrl_c(tmp_path: Path) -> None:
    """What a verb has begun is cleared away, and the exit code says that it was interrupted."""
    code = (
        "import hasten.cli as c, hasten.pipeline.export as e, tempfile, time, pathlib\n"
        "def wait(*_, **__):\n"
        f"    with tempfile.TemporaryDirectory(dir={str(tmp_path)!r}):\n"
        "        print('ready', flush=True); time.sleep(60)\n"
        "e.export = wait\n"
        "c.main()"
    )
    arguments = ["export", "x", "--to", "hf", "--out", "y"]
    with subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=-1, stderr=-1, text=True) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.readline() == "ready\n"
        running.terminate()
        assert running.wait(30) == 130
        assert "give the same command again" in running.stderr.read()
    assert not list(tmp_path.iterdir())


def test_half_a_character_in_an_answer_is_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from hasten.cli.output import emit_lines

    records = [{"answer": "\ud800 é"}, {"answer": "é"}]
    emit_lines(records, out=tmp_path / "said.jsonl", as_json=False)
    emit_lines(records, out=None, as_json=False)
    for said in ((tmp_path / "said.jsonl").read_text(encoding="utf-8"), capsys.readouterr().out):
        assert [json.loads(line) for line in said.splitlines()] == records
        assert '"é"' in said


def test_size_answers_in_json_and_writes_its_page(tmp_path: Path) -> None:
    words = ["--task", "chat", "--requests-per-s", "5", "--hardware", "l4", "--models", "llama-3.2-1b,llama-3.2-3b"]
    done = hasten("size", *words, "--slo", "tpot_ms<=50", "--out", tmp_path / "page.html", "--json")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["sentence"].startswith("DEPLOY Llama 3.2 1B")
    assert "<html" in (tmp_path / "page.html").read_text()
    none = hasten("size", *words, "--slo", "tpot_ms<=0.01")
    assert none.returncode == 1
    assert "NOTHING HOLDS" in none.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no task"),
        (("--task", "chat", "--hardware", "h2000"), "did you mean h200"),
        (("--task", "chat", "--slo", "tpot_ms<=1parsec"), "unknown unit"),
        (("--task", "chat", "--params", "7 billion"), "params is"),
        (("--task", "chat", "--spec", "nowhere.toml"), "nowhere.toml"),
        (("--task", "chat", "--out", "."), "is a folder"),
        (("--task", "chat", "--models", "~nosuchuser/x"), "models"),
    ],
)
def test_size_explains_what_it_cannot_understand(
    words: tuple[str, ...], message: str, here: Callable[..., Done]
) -> None:
    done = here("size", *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert "to do:" in done.stderr
    assert "Traceback" not in done.stderr
