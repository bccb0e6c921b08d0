"""What is sent to a worker at once, and how many rows a run can afford."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hasten.bundle.answers import Answers
from hasten.pipeline.arena import in_shares
from hasten.pipeline.prepare import _MOST_RECORDINGS, _capped
from hasten.pipeline.trials import TrialRunner
from hasten.records import SplitSizes
from hasten.tasks.split import Splits


@pytest.mark.parametrize(("answers", "wanted"), [(None, [16, 16, 8]), (Answers(4, 4), [1] * 40)])
def test_a_worker_gets_a_share_at_a_time(answers: Answers | None, wanted: list[int]) -> None:
    made, sent = [], list[int]()

    def batches() -> Iterator[dict[str, Any]]:
        for number in range(40):
            made.append(number)
            yield {"input_ids": np.full((1, 2), number)}

    class Fake:
        def run(self, some: list[dict[str, Any]], *, generation: Any) -> list[Any]:
            sent.append(len(some))
            assert len(made) == sum(sent), "no batch is made before it is sent"
            assert generation == (None if answers is None else answers.scored)
            return [batch["input_ids"][:, 0] for batch in some]

    generation = None if answers is None else answers.scored
    found = in_shares(Fake(), batches(), generation=generation)  # type: ignore[arg-type]
    assert np.concatenate(found).tolist() == list(range(40))
    assert sent == wanted


@pytest.mark.parametrize(("answers", "rows"), [(None, 600), (Answers(most=8, timed=2), 150), (Answers(2, 2), 600)])
def test_rows_are_counted_with_the_tokens_that_scored_answers_may_have(answers: Answers | None, rows: int) -> None:
    said: list[Any] = []
    runner: Any = SimpleNamespace(
        space=SimpleNamespace(ledger=SimpleNamespace(rows=SimpleNamespace(rows=[]), append=said.append)),
        request=SimpleNamespace(workload=SimpleNamespace(batch=1), time_s=600.0),
        prepared=SimpleNamespace(answers=answers),
    )
    assert TrialRunner._affordable_rows(runner, [100.0, 100.0]) == rows
    assert said == [{"type": "rows", "most": rows}]


def test_recordings_are_capped_before_they_are_read() -> None:
    three = (range(700), range(700, 2700), range(2700, 4700))
    splits = Splits(*map(tuple, three), facts=SplitSizes(700, 2000, 2000, seed=0, how="drawn"))
    parts, notes = _capped(splits, None, sounds=True)
    assert [len(part) for part in parts] == [_MOST_RECORDINGS] * 3
    assert "recordings" in notes[0]
    parts, notes = _capped(splits, 600, sounds=True)
    assert [len(part) for part in parts] == [_MOST_RECORDINGS, 600, 600], "who asks for more gets it"
    assert _capped(splits, None, sounds=False) == ([tuple(part) for part in three], ())
    assert [len(part) for part in _capped(splits, 10, sounds=False)[0]] == [700, 10, 10]
