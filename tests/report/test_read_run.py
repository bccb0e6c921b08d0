"""A run read back from its folder gives what was written, also after a kill in mid-line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from hasten.ledger import Ledger
from hasten.records import InputError, Trial, Verdict, Workload
from hasten.report.read import read_run
from hasten.report.verdict_json import write_verdict

HEADER = {"command": "hasten optimize m", "workload": Workload(threads=2, cores=(0, 1))}


@pytest.fixture
def folder(tmp_path: Path, verdict: Verdict, trials: list[Trial], samples: Mapping[str, Sequence[float]]) -> Path:
    write_verdict(tmp_path / "verdict.json", verdict)
    with Ledger.open(tmp_path / "trials.jsonl", run_key="k", header=HEADER) as ledger:
        for trial in trials:
            ledger.append_trial(trial)
        ledger.append({"type": "a later hasten's row", "x": 1})
        ledger.append_samples("baseline", samples["baseline"])
        ledger.append_samples("chosen", samples["chosen"])
    return tmp_path


def test_a_run_comes_back_whole(
    folder: Path, verdict: Verdict, trials: list[Trial], samples: Mapping[str, Sequence[float]]
) -> None:
    run = read_run(folder)
    assert run.verdict == verdict
    assert list(run.trials) == trials
    assert run.samples["chosen"] == pytest.approx(samples["chosen"], abs=1e-4)
    assert run.command == "hasten optimize m"
    assert run.workload == Workload(threads=2, cores=(0, 1))


def test_a_torn_last_line_is_passed_over(folder: Path, trials: list[Trial]) -> None:
    path = folder / "trials.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    run = read_run(folder)
    assert list(run.trials) == trials
    assert set(run.samples) == {"baseline"}


def test_a_verdict_alone_can_be_read(folder: Path, verdict: Verdict) -> None:
    (folder / "trials.jsonl").unlink()
    run = read_run(folder)
    assert (run.verdict, run.trials, run.samples, run.command, run.workload) == (verdict, (), {}, "", None)


def test_what_is_missing_is_named(folder: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        read_run(folder / "nowhere")
    (folder / "verdict.json").unlink()
    with pytest.raises(InputError, match=r"no file .*verdict\.json"):
        read_run(folder)


def test_a_damaged_workload_is_named(folder: Path) -> None:
    path = folder / "trials.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"batch":1', b'"batch":"x"', 1))
    with pytest.raises(InputError, match="workload"):
        read_run(folder)
