"""What a run hands back to the user.

Takes an output folder, gives a :class:`Result` that reads well in a terminal and in a
notebook.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten.records import Interval, Verdict
from hasten.report.read import Run, read_run
from hasten.report.verdict_json import verdict_to_dict

if TYPE_CHECKING:
    from rich.console import Console

    from hasten.bundle import Model


@dataclass(frozen=True, slots=True)
class Result:
    """A finished run: its verdict and where everything lies."""

    folder: Path
    run: Run

    @property
    def verdict(self) -> Verdict:
        return self.run.verdict

    @property
    def outcome(self) -> str:
        """``"met"``, ``"not_met"`` or ``"baseline_best"``."""
        return self.verdict.outcome

    @property
    def speedup(self) -> Interval | None:
        """Against the model as PyTorch loads it (p50 ratio)."""
        return self.verdict.speedup

    @property
    def bundle(self) -> Path | None:
        """The artifact, or ``None`` when no candidate was worth one."""
        path = self.folder / "bundle"
        return path if path.is_dir() else None

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    @property
    def next_command(self) -> str:
        """What to type next."""
        if self.bundle is None:
            return f"hasten report {self.folder}"
        return f"hasten run {self.bundle} --data ROWS.csv"

    def load(self) -> Model:
        """Open the bundle; raises InputError when there is none."""
        from hasten.bundle import load

        return load(self.folder / "bundle")

    def to_dict(self) -> dict[str, Any]:
        """The verdict as in ``verdict.json``, with the paths and the next command."""
        paths = {
            "bundle": self.bundle and str(self.bundle),
            "report": str(self.report),
            "folder": str(self.folder),
        }
        return {**verdict_to_dict(self.verdict), **paths, "next_command": self.next_command}

    def show(self, console: Console) -> None:
        from hasten.report.terminal import render_terminal

        render_terminal(self.verdict, self.run.trials, console=console, next_command=self.next_command)
        console.print(f"report   {self.report}", highlight=False, soft_wrap=True)
        if self.bundle:
            console.print(f"bundle   {self.bundle}", highlight=False, soft_wrap=True)

    def __repr__(self) -> str:
        return f"<hasten result: {self.verdict.sentence} | bundle: {self.bundle} | report: {self.report}>"

    def _repr_html_(self) -> str:
        where = f"<br><small>bundle <code>{html.escape(str(self.bundle))}</code>" if self.bundle else "<br><small>"
        report = f" · report <code>{html.escape(str(self.report))}</code></small>"
        return f"<b>{html.escape(self.verdict.sentence)}</b>{where}{report}"


def open_result(folder: str | Path, *, rewrite: bool = False) -> Result:
    """The result of a finished run in ``folder``; ``rewrite`` draws its report again."""
    result = Result(folder=Path(folder), run=read_run(folder))
    if rewrite:
        write_report(result)
    return result


def write_report(result: Result) -> None:
    """Draw ``report.html`` from what is on disk."""
    from hasten.report.html import write_html

    run = result.run
    write_html(
        result.report, run.verdict, run.trials, command=run.command, samples=run.samples or None, workload=run.workload
    )
