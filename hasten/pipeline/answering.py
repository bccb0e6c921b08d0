"""How long answers and prompts may be, from what the user asked and from the data.

Takes the workload, the rows and the checkpoint's facts, gives :class:`hasten.bundle.answers.Answers` and how many
tokens a prompt may have. Knows no runtime.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from hasten.bundle.answers import Answers
from hasten.measure.writing import NOTHING
from hasten.models.writing import Writing
from hasten.records import Budget, InputError, Quality, Workload
from hasten.tasks import get_task
from hasten.tasks.generating import AGREEMENT, NEXT_TOKEN
from hasten.tasks.rows import Rows
from hasten.tasks.task import Generative

_USUAL_TOKENS = 64
_MOST_TOKENS = 512
_COUNTED_ROWS = 500
_MOST_SHARE = 0.98
_SHORTEST_PROMPT = 8
_CUT_SHARE = 0.05
_HARDLY_ANYTHING = 1.0
_OWN_MEASURES = (AGREEMENT, NEXT_TOKEN)  # with itself: there is no drop to be seen in them
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
    return Answers(
        most=most, timed=timed, ends=writing.ends, start=writing.start, never=writing.never,
        never_first=writing.never_first,
    )  # fmt: skip


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


def doubts_of_answers(outputs: Any, answers: Answers | None, quality: Quality | None) -> tuple[str, ...]:
    """Sentences on the original's own answers, ids [N, T]: many that were cut, and scores that cannot fall."""
    if answers is None or outputs is None or quality is None:
        return ()
    found = []
    cut = (~np.isin(outputs, answers.ends).any(axis=1)) & ((outputs != NOTHING).sum(axis=1) >= answers.most)
    if cut.mean() > _CUT_SHARE:
        found.append(
            f"{cut.mean():.0%} of the original's answers were cut at {answers.most} tokens: what came behind was not "
            "scored (give more with --new-tokens)"
        )
    if quality.metric not in _OWN_MEASURES and quality.value < _HARDLY_ANYTHING:
        found.append(
            f"the original itself scores {quality.value:.1f} points of {quality.metric}: a drop in it says nothing; "
            "look at your references, or leave them out to compare with the original's answers"
        )
    return tuple(found)


def check_workload(task: str, workload: Workload, budget: Budget) -> None:
    """Raise InputError for settings and bounds that only text that is written has."""
    if isinstance(get_task(task), Generative):
        if workload.chat and task != "text-generation":
            raise InputError(f"--chat for {task}", expected="text-generation", remedy="leave --chat out")
        if workload.prompt_tokens is not None and task == "speech-recognition":
            raise InputError(
                f"--prompt-tokens for {task}", expected="recordings, which have no tokens", remedy="leave it out"
            )
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
