"""How prompts of an evaluation are gone on with: greedily, and as everything else that hasten writes.

Takes a session or an opened decoder, gives the function that :class:`hasten.pipeline.likelihood.Reader` asks. Where
texts end, and which tokens are never written, comes from the same place as in a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from hasten.models.writing import writing_of
from hasten.pipeline.answering import answers_of
from hasten.pipeline.likelihood import Write, padded
from hasten.records import Workload
from hasten.runtimes.generation import Generation
from hasten.tasks import get_task


def of_session(session: Any, usual: Generation) -> Write:
    """One prompt at a time, as ``usual`` says, up to one of its ends or to the one that is given."""

    def write(ids: Sequence[int], tokens: int, last: int | None) -> Iterator[int]:
        ends = usual.ends if last is None else tuple(sorted({*usual.ends, last}))
        for following in session.generate(padded([ids]), replace(usual, new_tokens=tokens, ends=ends)):
            if int(following[0]) in ends:
                return
            yield int(following[0])

    return write


def of_model(hf: Any) -> Write:
    """A transformers decoder in eager PyTorch, as every run's baseline writes."""
    from hasten.runtimes.generation_facts import facts_of
    from hasten.runtimes.torch_generation import generation_session

    writer = get_task("text-generation").wrap_model(hf, pooling=None, normalize=False)
    session = generation_session(hf, facts_of(writer, padded([[0]])), precision="fp32")
    answers = answers_of(Workload(new_tokens=1), writing_of(hf), None, count=len)  # lengths are the harness's matter
    return of_session(session, answers.scored)
