"""How long answers and prompts may be, from what the user asked and from the data.

Takes the workload, the rows and the checkpoint's facts, gives :class:`hasten.bundle.answers.Answers` and how many
tokens a prompt may have. Knows no runtime.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from hasten.bundle.answers import Answers
from hasten.models.writing import Writing
from hasten.records import Budget, InputError, Workload
from hasten.tasks import get_task
from hasten.tasks.rows import Rows
from hasten.tasks.task import Generative

_USUAL_TOKENS = 64
_MOST_TOKENS = 512
_COUNTED_ROWS = 500
_MOST_SHARE = 0.98
_SHORTEST_PROMPT = 8
_WRITTEN = ("ttft_ms", "ttft_p95_ms", "tpot_ms", "tpot_p95_ms", "tokens_per_s")


def answers_of(workload: Workload, writing: Writing, rows: Rows | None, *, count: Callable[[str], int]) -> Answers:
    """``--new-tokens``, or as the references are: timed is their median, and 98 % of them are no longer than the most.

    Without references 64. Raises InputError for more tokens than the model has positions for.
    """
    room = None if writing.longest is None else writing.longest - (len(writing.start) or _SHORTEST_PROMPT)
    if workload.new_tokens is not None:
        if room is not None and workload.new_tokens > room:
            raise InputError(
                f"--new-tokens {workload.new_tokens}", expected=f"at most {room}: the model has positions for no more",
                remedy="lower it",
            )  # fmt: skip
        timed = most = workload.new_tokens
    else:
        known = () if rows is None or rows.labels is None else rows.labels[:_COUNTED_ROWS]
        lengths = [count(references[0]) + 1 for references in known] or [_USUAL_TOKENS]  # and the end
        limit = min(_MOST_TOKENS, room or _MOST_TOKENS)
        most = min(limit, math.ceil(float(np.quantile(lengths, _MOST_SHARE))))
        timed = min(most, max(1, round(float(np.median(lengths)))))
    return Answers(most=most, timed=timed, ends=writing.ends, start=writing.start)


def prompt_limit(workload: Workload, writing: Writing, answers: Answers, *, limit: int) -> int:
    """Tokens that a prompt may have: ``limit``, and in a decoder alone what an answer leaves of its positions.

    Raises InputError when ``--prompt-tokens`` asks for more.
    """
    longest = limit if writing.encoder or writing.longest is None else min(limit, writing.longest - answers.most)
    if longest < 1:
        raise InputError(
            f"--new-tokens {answers.most} of the {writing.longest} tokens that the model has positions for",
            expected="room for a prompt", remedy="lower --new-tokens",
        )  # fmt: skip
    if workload.prompt_tokens is not None and workload.prompt_tokens > longest:
        raise InputError(
            f"--prompt-tokens {workload.prompt_tokens}", expected=f"at most {longest}",
            remedy="lower it, or raise --max-length as far as the model goes",
        )  # fmt: skip
    return longest


def check_workload(task: str, workload: Workload, budget: Budget) -> None:
    """Raise InputError for settings and bounds that only text that is written has."""
    if isinstance(get_task(task), Generative):
        if workload.chat and task != "text-generation":
            raise InputError(f"--chat for {task}", expected="text-generation", remedy="leave --chat out")
        return
    given = {
        "--new-tokens": workload.new_tokens is not None, "--prompt-tokens": workload.prompt_tokens is not None,
        "--chat": workload.chat, "--prefix": bool(workload.prefix),
    }  # fmt: skip
    asked = [flag for flag, there in given.items() if there]
    asked += [c.text for c in budget.constraints if c.metric in _WRITTEN]
    if asked:
        raise InputError(
            f"{asked[0]} for {task}, which writes no text",
            expected="a task that does: text-generation, summarization, translation or speech-recognition",
            remedy="leave it out, or use --task text-generation for a decoder",
        )
