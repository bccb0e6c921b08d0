"""What one run was asked for, checked before anything heavy starts.

Takes the arguments of :func:`hasten.optimize`, gives a frozen :class:`Request`. Knows
no torch and touches no model; budget, time, threads and names are settled here.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hasten.measure.host import usable_cores
from hasten.pipeline.answering import check_workload
from hasten.plan.budget import parse_budget
from hasten.records import Budget, Columns, InputError, ModelRef, Recipe, Workload

_SECONDS = {"s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_SHORTEST_S = 20.0


@dataclass(frozen=True, slots=True)
class DataFiles:
    """One source to split, or three sources that are the splits."""

    data: str | None = None
    calibration: str | None = None
    selection: str | None = None
    test: str | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One run of the optimizer. ``recipe`` is the JSON of the one to build where nothing is to be searched."""

    model: ModelRef
    task: str
    files: DataFiles
    columns: Columns
    budget: Budget
    workload: Workload
    time_s: float
    out: Path
    runtimes: tuple[str, ...] | None = None
    techniques: tuple[str, ...] | None = None
    recipe: str | None = None
    max_rows: int | None = None
    extra_file: str | None = None
    extra_texts: tuple[str, ...] = ()
    keep_work: bool = False
    overwrite: bool = False

    @property
    def run_key(self) -> str:
        """Hash of all that decides a trial's meaning: a resume needs the same. Time and budget may change."""
        facts = asdict(self)
        for free in ("time_s", "out", "budget", "keep_work", "overwrite"):
            facts.pop(free)
        if self.recipe is None:  # as runs were known before there were recipes
            facts.pop("recipe")
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def parse_time(text: str | float) -> float:
    """Seconds from ``"90s"``, ``"10m"``, ``"1h30m"`` or a number of seconds.

    Raises InputError for anything else, or for less than 20 seconds (nothing can be verified in less).
    """
    if isinstance(text, (int, float)):
        seconds = float(text)
    else:
        parts = re.findall(r"(\d+(?:\.\d+)?)\s*(min|sec|[smh])", text.strip().lower())
        whole = re.fullmatch(r"(?:\d+(?:\.\d+)?\s*(?:min|sec|[smh])\s*)+", text.strip().lower())
        if not parts or not whole:
            raise InputError(
                f"--time {text!r}",
                expected="a duration such as 90s, 10m, 1h or 1h30m",
                remedy="write the number with its unit",
            )
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if not _SHORTEST_S <= seconds < 1e7:
        raise InputError(
            f"--time of {seconds:g} s",
            expected=f"at least {_SHORTEST_S:g} s: loading, exporting and verifying one candidate takes that",
            remedy="give it minutes, for example --time 10m",
        )
    return seconds


def parse_cores(text: str | tuple[int, ...] | None) -> tuple[int, ...]:
    """Core numbers from ``"0,2-3"``; ``None`` means all that this process may use.

    Raises InputError for malformed text or a core this process may not use.
    """
    usable = usable_cores()
    if text is None:
        return usable
    if isinstance(text, str):
        if not re.fullmatch(r"\s*\d{1,4}(-\d{1,4})?(\s*,\s*\d{1,4}(-\d{1,4})?)*\s*", text):
            raise InputError(
                f"--cores {text[:80]!r}", expected="core numbers such as 0,1 or 0-3", remedy="correct the list"
            )
        ranges = [part.strip().split("-") for part in text.split(",")]
        numbers = {n for r in ranges for n in range(int(r[0]), int(r[-1]) + 1)}
    else:
        numbers = set(text)
    outside = sorted(numbers - set(usable))
    if outside or not numbers:
        raise InputError(
            f"cores {str(sorted(numbers))[:80]}",
            expected=f"some of the cores this process may use: {', '.join(map(str, usable))}",
            remedy="leave --cores out to use them all",
        )
    return tuple(sorted(numbers))


def make_request(
    model: str | Path,
    *,
    task: str,
    data: str | Path | None,
    budget: str,
    time: str | float,
    out: str | Path,
    columns: Columns,
    splits: tuple[str | None, str | None, str | None] = (None, None, None),
    runtimes: tuple[str, ...] | None = None,
    techniques: tuple[str, ...] | None = None,
    recipe: str | Path | Mapping[str, Any] | Recipe | None = None,
    threads: int | None = None,
    cores: str | tuple[int, ...] | None = None,
    batch: int = 1,
    concurrency: int = 1,
    max_length: int | None = None,
    max_rows: int | None = None,
    extra_data: str | Path | Iterable[str] | None = None,
    seed: int = 0,
    revision: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    keep_work: bool = False,
    overwrite: bool = False,
    **written: Any,
) -> Request:
    """Check every argument that can be checked without loading anything; raises InputError.

    ``written`` are the settings of text that is written: new_tokens, prompt_tokens, chat, prefix.
    """
    from hasten.tasks import get_task

    get_task(task)
    extra_file = str(extra_data) if isinstance(extra_data, (str, Path)) else None
    extra_texts = () if extra_data is None or isinstance(extra_data, (str, Path)) else tuple(map(str, extra_data))
    workload = _workload(
        parse_cores(cores), threads=threads, batch=batch, concurrency=concurrency, max_length=max_length, seed=seed,
        **written,
    )  # fmt: skip
    check_workload(task, workload, bounds := parse_budget(budget))
    return Request(
        model=ModelRef(str(model), revision, allow_pickle, trust_remote_code),
        task=task,
        files=_files(data, splits),
        columns=columns,
        budget=bounds,
        workload=workload,
        time_s=parse_time(time),
        out=Path(out),
        runtimes=runtimes,
        techniques=techniques,
        recipe=None if recipe is None else _recipe(recipe, narrowed=bool(runtimes or techniques)),
        extra_file=extra_file,
        extra_texts=extra_texts,
        max_rows=max_rows if max_rows is None else _at_least_one("--max-rows", max_rows),
        keep_work=keep_work,
        overwrite=overwrite,
    )


def _workload(
    used: tuple[int, ...], *, threads: int | None, batch: int, concurrency: int, max_length: int | None, seed: int,
    new_tokens: int | None = None, prompt_tokens: int | None = None, chat: bool = False, prefix: str = "",
) -> Workload:  # fmt: skip
    """Raises InputError."""
    return Workload(
        batch=_at_least_one("--batch", batch),
        concurrency=_at_least_one("--concurrency", concurrency),
        threads=parse_threads(threads, used),
        cores=used,
        max_length=_at_least_one("--max-length", max_length if max_length is not None else 512),
        seed=checked_seed(seed),
        new_tokens=new_tokens if new_tokens is None else _at_least_one("--new-tokens", new_tokens),
        prompt_tokens=prompt_tokens if prompt_tokens is None else _at_least_one("--prompt-tokens", prompt_tokens),
        chat=chat,
        prefix=prefix,
    )


def _recipe(given: str | Path | Mapping[str, Any] | Recipe, *, narrowed: bool) -> str:
    from hasten.pipeline.asked import read_asked

    if narrowed:
        raise InputError(
            "--recipe with --runtimes or --techniques", expected="one of them: a recipe leaves nothing to search",
            remedy="leave the others out",
        )  # fmt: skip
    return json.dumps(read_asked(given).to_dict(), sort_keys=True)


def _files(data: str | Path | None, splits: tuple[str | None, str | None, str | None]) -> DataFiles:
    given = [s is not None for s in splits]
    if data is not None and not any(given):
        return DataFiles(data=str(data))
    if data is None and all(given):
        return DataFiles(None, *splits)
    raise InputError(
        "data given as " + (f"--data and {sum(given)} split file(s)" if data else f"{sum(given)} split file(s)"),
        expected="either --data FILE, or all of --calibration-data, --selection-data and --test-data",
        remedy="give one file to be split for you, or your own three",
    )


def parse_threads(threads: int | None, cores: tuple[int, ...]) -> int:
    """The thread count, by default one per core; raises InputError for more than there are cores."""
    if threads is None:
        return len(cores)
    if not 1 <= threads <= len(cores):
        raise InputError(
            f"--threads {threads} on cores {', '.join(map(str, cores))}",
            expected=f"1 to {len(cores)}: more threads than cores only make it slower",
            remedy="lower --threads, or give more --cores",
        )
    return threads


def checked_seed(value: int) -> int:
    """The seed itself. Raises InputError for one that no generator of random numbers takes."""
    if not 0 <= value < 2**31:
        raise InputError(f"--seed {value}", expected=f"a whole number from 0 to {2**31 - 1}", remedy="correct the flag")
    return value


def _at_least_one(flag: str, value: int) -> int:
    if value < 1:
        raise InputError(f"{flag} {value}", expected="a whole number of at least 1", remedy="correct the flag")
    return value


def command_line(request: Request) -> str:
    """The command that was typed, or the call that stands for it."""
    if Path(sys.argv[0]).name == "hasten":
        return shlex.join(["hasten", *sys.argv[1:]])
    return f"hasten.optimize({request.model.source!r}, task={request.task!r}, budget={request.budget.text!r}, ...)"
