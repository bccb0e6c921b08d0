"""Read a finished run back from its output folder.

Takes the folder, gives the verdict, the trials, the raw request times and the command
that made them. Reads only; a torn last line of the ledger is passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten import ledger
from hasten.records import InputError, Trial, Verdict, Workload, read_as
from hasten.report import verdict_json


@dataclass(frozen=True, slots=True)
class Run:
    """All that a report is drawn from. ``samples`` maps ``baseline`` and ``chosen`` to milliseconds."""

    verdict: Verdict
    trials: tuple[Trial, ...]
    samples: Mapping[str, tuple[float, ...]]
    command: str
    workload: Workload | None = None


def read_run(folder: str | Path) -> Run:
    """Read ``verdict.json`` and ``trials.jsonl`` in ``folder``.

    Raises InputError when the folder or the verdict is absent or either file is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(
            f"no folder {folder}",
            expected="the --out folder of a hasten optimize run",
            remedy="check the path, or run hasten optimize first",
        )
    verdict = verdict_json.read_verdict(folder / verdict_json.FILE_NAME)
    rows = ledger.read_rows(folder / ledger.FILE_NAME)
    return Run(
        verdict=verdict,
        trials=rows.trials(),
        samples=rows.samples(),
        command=str(rows.header.get("command", "")),
        workload=_workload(rows.header),
    )


def _workload(header: Mapping[str, Any]) -> Workload | None:
    """The ``workload`` of the run row where the run wrote one."""
    from pydantic import ValidationError

    if header.get("workload") is None:
        return None
    try:
        return read_as(Workload, header["workload"])
    except ValidationError as error:
        raise InputError(
            f"the run row's workload is not readable: {error.errors()[0]['msg']}",
            expected="a ledger as hasten wrote it",
            remedy="restore trials.jsonl, or run hasten optimize again into a new folder",
        ) from error
