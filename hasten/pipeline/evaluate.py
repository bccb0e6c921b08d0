"""Scores on public tasks with EleutherAI's ``lm-eval``: ``hasten evaluate``.

Takes a checkpoint, a GGUF file or a bundle of a language model, and names of that harness's tasks. The harness reads
the data, forms the questions and scores the answers; the model answers through hasten's own sessions, so what is scored
of a bundle is what is deployed. Tokens are cut as the harness's own models cut them.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hasten import __version__
from hasten.pipeline.continuing import of_model, of_session
from hasten.pipeline.likelihood import Array, Arrays, Reader, Words
from hasten.pipeline.progress import Reporter, Silent
from hasten.pipeline.request import parse_cores, parse_threads
from hasten.records import InputError, MissingDependency, ModelRef

_LONGEST = 2048
_READS = ("language-modeling", "multiple-choice")
_WRITES = "text-generation"
_COUNT = "sample_len"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """``tasks``: the figures of each task by the harness's own names. ``settings`` make them comparable."""

    model: str
    tasks: dict[str, dict[str, float]]
    rows: dict[str, int]
    settings: dict[str, Any]
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def evaluate(
    model: str | Path,
    *,
    tasks: Sequence[str],
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch: int = 8,
    max_length: int | None = None,
    include_path: str | Path | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    threads: int | None = None,
    cores: str | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    reporter: Reporter | None = None,
) -> Evaluation:
    """Score ``model`` on ``tasks``. Raises MissingDependency without ``lm-eval``, InputError for a model that cannot
    answer, tasks that nobody knows, or data that cannot be had."""
    say = reporter or Silent()
    if out is not None:
        _check_out(Path(out))
    manager = _manager(tasks, include_path)
    used = parse_cores(cores)
    width = parse_threads(threads, used) if threads is not None else len(used)
    ref = ModelRef(str(model), revision=revision, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
    settings = {"limit": limit, "num_fewshot": num_fewshot, "batch": batch, "seed": seed}
    with (
        _on(used if cores is not None else None),  # before any thread pool is made
        opened(ref, max_length=max_length, batch=batch, threads=width, cores=used) as reader,
    ):
        say.line(f"{ref.source}: {', '.join(tasks)}, windows of {reader.max_length} tokens")
        found = _asked(reader, manager, tasks, limit=limit, num_fewshot=num_fewshot, seed=seed)
    result = Evaluation(
        str(model), {name: _figures(own) for name, own in found["results"].items()},
        {name: int(n["effective"]) for name, n in (found.get("n-samples") or {}).items()},
        {**settings, "max_length": reader.max_length}, {"lm-eval": version("lm-eval"), "hasten": __version__},
    )  # fmt: skip
    if out is not None:
        from hasten.atomic import write_atomically

        write_atomically(out, json.dumps(result.to_dict(), indent=1) + "\n")
    return result


def _check_out(path: Path) -> None:
    """Raise InputError for what could not be written in the end: a score may take hours."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "no file"
        raise InputError(f"--out {path} is {what}", expected="a file for the results", remedy="give it a name")
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(
            f"--out {path} cannot be written into {folder}", expected="a folder that may be written",
            remedy="give another --out",
        )  # fmt: skip


def show(result: Evaluation, *, console: Any) -> None:
    """For people: a row a figure."""
    from rich.table import Table

    table = Table("task", "metric", "value", "±", "rows")
    for task, figures in result.tasks.items():
        for name, value in figures.items():
            if "_stderr" not in name:
                metric, _, kind = name.partition(",")
                error = figures.get(f"{metric}_stderr,{kind}")
                table.add_row(
                    task, f"{metric} ({kind})" if kind not in ("", "none") else metric, f"{value:.4f}",
                    "" if error is None else f"{error:.4f}", str(result.rows.get(task, "")),
                )  # fmt: skip
    console.print(table)


@contextlib.contextmanager
def opened(
    ref: ModelRef, *, max_length: int | None, batch: int, threads: int, cores: tuple[int, ...]
) -> Iterator[Reader]:
    """The model as something that can be asked. Raises InputError."""
    from hasten.bundle.manifest import FILE_NAME

    if batch < 1 or (max_length is not None and max_length < 2):
        raise InputError(
            f"--batch {batch}, --max-length {max_length}", expected="at least 1, and at least 2", remedy="correct them"
        )
    bundle = Path(ref.source).expanduser()
    packed = (bundle / FILE_NAME).is_file()
    source = _bundle(bundle, threads=threads, cores=cores) if packed else _checkpoint(ref, threads=threads)
    with source as (words, run, write, limit):
        if max_length is not None and max_length > limit:
            raise InputError(f"--max-length {max_length}", expected=f"{limit} at most", remedy="lower it")
        yield Reader(words, run, write, max_length or min(limit, _LONGEST), batch)


@contextlib.contextmanager
def _on(cores: tuple[int, ...] | None) -> Iterator[None]:
    """Within, the process runs on these cores; ``None``: on those that it has."""
    if cores is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def _bundle(folder: Path, *, threads: int, cores: tuple[int, ...]) -> Iterator[tuple[Words, Any, Any, int]]:
    """A bundle's own session; what it can do is its task's."""
    from hasten.bundle import load
    from hasten.tasks.processor import files_of

    with load(folder, threads=threads, cores=cores) as model:
        task = model.manifest.task
        if task not in (*_READS, _WRITES):
            raise InputError(
                f"{folder} is a bundle for {task}", expected=f"one for {', '.join((*_READS, _WRITES))}",
                remedy="build a bundle of the language model for one of these tasks",
            )  # fmt: skip
        words = Words(files_of(folder))
        answers = model.manifest.answers
        write = None if answers is None else of_session(model.session, answers.scored)
        yield words, (model.run if task in _READS else None), write, model.manifest.max_length


@contextlib.contextmanager
def _checkpoint(ref: ModelRef, *, threads: int) -> Iterator[tuple[Words, Any, Any, int]]:
    """The checkpoint in fp32 on torch, as every run's baseline is."""
    import torch

    from hasten.models.load import load_checkpoint
    from hasten.tasks import get_task

    task = get_task(_READS[0])
    found = load_checkpoint(ref, task=task)
    wrapper = task.wrap(found).eval()

    def run(arrays: Arrays) -> Array:
        with torch.inference_mode():
            output: Array = wrapper(**{name: torch.from_numpy(array) for name, array in arrays.items()}).numpy()
        return output

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield Words(found.processor_files), run, of_model(wrapper.hf), found.max_length
    finally:
        torch.set_num_threads(before)


# ------------------------------------------------------------------ the harness


def harness_model(reader: Reader) -> Any:
    """The reader as an ``lm_eval.api.model.LM``."""
    from lm_eval.api.model import TemplateLM

    class Answering(TemplateLM):  # type: ignore[misc]
        """The harness splits texts into tokens and contexts; the reader answers."""

        @property
        def eot_token_id(self) -> int:
            return reader.words.first if reader.words.last is None else reader.words.last

        @property
        def prefix_token_id(self) -> int:
            return reader.words.first

        @property
        def max_length(self) -> int:
            return reader.max_length

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            return reader.words.encode(string, special=add_special_tokens)

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            return reader.likelihoods([(context, continuation) for _, context, continuation in requests])

        def loglikelihood_rolling(self, requests: Any, **_: Any) -> list[float]:
            return [reader.rolling(request.args[0]) for request in requests]

        def generate_until(self, requests: Any, **_: Any) -> list[str]:
            return [_answer(reader, *request.args) for request in requests]

    return Answering()


def _answer(reader: Reader, prompt: str, asked: dict[str, Any]) -> str:
    """Raises InputError for answers that are to be drawn by chance."""
    if asked.get("do_sample") and float(asked.get("temperature", 1.0)) > 0:
        raise InputError("a task that draws its answers", expected="greedy ones", remedy="leave the task out")
    until = asked.get("until") or ()
    tokens = int(asked.get("max_gen_toks", asked.get("max_new_tokens", 256)))
    return reader.written(prompt, until=[until] if isinstance(until, str) else list(until), tokens=tokens)


def _manager(tasks: Sequence[str], include_path: str | Path | None) -> Any:
    """The harness's tasks. Raises InputError for names that are none of them."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise MissingDependency("lm-eval", extra="lm-eval") from error
    if include_path is not None and not Path(include_path).is_dir():
        raise InputError(f"no folder {include_path}", expected="a folder with tasks in YAML", remedy="check the path")
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    known = set(manager.all_tasks)
    strange = [name for name in tasks if name not in known]
    if strange or not tasks:
        from difflib import get_close_matches

        near = get_close_matches(strange[0], known, n=3) if strange else []
        raise InputError(
            f"lm-eval has no task {strange[0]!r}" if strange else "no task",
            expected=f"one of its {len(known)} tasks, such as {', '.join(near) or 'piqa, arc_easy, wikitext'}",
            remedy="list them with 'lm-eval ls tasks', or give --include-path",
        )
    return manager


def _asked(
    reader: Reader, manager: Any, tasks: Sequence[str], *, limit: int | None, num_fewshot: int | None, seed: int
) -> dict[str, Any]:
    from lm_eval.evaluator import simple_evaluate

    with contextlib.redirect_stdout(sys.stderr):  # ours is for results
        try:
            found: dict[str, Any] = simple_evaluate(
                model=harness_model(reader), tasks=list(tasks), num_fewshot=num_fewshot, limit=limit,
                task_manager=manager, log_samples=False, random_seed=seed, numpy_random_seed=seed,
                torch_random_seed=seed, fewshot_random_seed=seed, bootstrap_iters=1000,
            )  # fmt: skip
        except OSError as error:  # no network, no such data set, no space
            raise InputError(
                f"the data of {', '.join(tasks)} cannot be had: {str(error).strip()[:300]}",
                expected="data that the hub gives, or that is in its cache",
                remedy="check the network, or give tasks of your own on local files with --include-path",
            ) from error
    return found


def _figures(own: dict[str, Any]) -> dict[str, float]:
    """Numbers alone: the harness writes 'N/A' for what it does not estimate, and counts rows among the figures."""
    return {name: float(value) for name, value in own.items() if isinstance(value, int | float) and name != _COUNT}
