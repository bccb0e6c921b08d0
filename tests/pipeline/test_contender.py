"""A side of a duel reads, writes and is timed as the bundle that it meets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles_for_tests import language_bundle
from task_models import save_task_model

from hasten.bundle.answers import Answers
from hasten.measure.worker import Worker
from hasten.pipeline.bench import bench
from hasten.pipeline.contender import Contender, make_contender, workload_for
from hasten.records import InputError, ModelRef, Workload
from hasten.tasks.examples import Example


def text(length: int) -> tuple[Example, ...]:
    ids = np.arange(1, length + 1, dtype=np.int64)
    return (Example({"input_ids": ids, "attention_mask": np.ones_like(ids)}),)


def side(**changes: Any) -> Contender:
    names = ("input_ids", "attention_mask")
    return Contender("a", "a", "text-generation", (), names, processor=None, bytes=1, **changes)


def test_timed_prompts_are_as_long_as_the_runs() -> None:
    rows = [text(3), text(9)]
    own, cut = side(), side(workload=Workload(prompt_tokens=5))
    assert [b["input_ids"].shape[1] for b in own.batches(own.timed(rows), batch=1)] == [3, 9]
    assert [b["input_ids"].shape[1] for b in cut.batches(cut.timed(rows), batch=1)] == [5, 5]


def test_peak_memory_is_that_of_an_answer_to_the_longest_prompt() -> None:
    asked: list[Any] = []

    class Fake:
        def run(self, batches: Any, *, generation: Any) -> None:
            asked.append((batches[0]["input_ids"].shape, generation.new_tokens, generation.ignore_ends))

        def stats(self) -> Any:
            return type("Stats", (), {"peak_rss_bytes": 77})

    rows = [text(3), text(9), text(4)]
    assert side(answers=Answers(most=8, timed=6)).peak_bytes(Fake(), rows, batch=2) == 77  # type: ignore[arg-type]
    assert asked == [((2, 9), 6, True)]
    assert side().peak_bytes(Fake(), rows, batch=2) is None  # type: ignore[arg-type]


def test_a_checkpoint_takes_the_limit_of_the_bundle_that_it_meets(tmp_path: Path) -> None:
    model = save_task_model(tmp_path / "model", "text-generation")
    bundle = language_bundle(model, tmp_path / "bundle")
    refs = [ModelRef(str(model)), ModelRef(str(bundle))]
    manifest_limit = make_contender(refs[1], task=None, worker=None, scratch=tmp_path).processor.max_length  # type: ignore[arg-type]
    assert manifest_limit != Workload().max_length
    assert workload_for(refs, Workload(), task=None).max_length == manifest_limit
    with pytest.raises(InputError, match="--new-tokens"):
        workload_for(refs, Workload(new_tokens=9), task="language-modeling")


def test_a_wrong_path_is_said_before_any_model_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def never(**_: Any) -> Any:
        raise AssertionError("a worker was started")

    monkeypatch.setattr(Worker, "start", never)
    model = save_task_model(tmp_path / "model", "language-modeling")
    bundle = language_bundle(model, tmp_path / "bundle")
    for source, task in ((model, "language-modeling"), (bundle, None)):
        with pytest.raises(InputError, match=r"no such file: .*nowhere\.txt"):
            bench(source, data=tmp_path / "nowhere.txt", task=task)
    with pytest.raises(InputError, match="add --task"):
        bench(model, data=tmp_path / "nowhere.txt")
    with pytest.raises(InputError, match="is a bundle for"):
        bench(bundle, data=tmp_path / "nowhere.txt", task="text-classification")


def test_two_checkpoints_write_as_is_asked(tmp_path: Path) -> None:
    refs = [ModelRef(str(tmp_path)), ModelRef(str(tmp_path))]
    asked = Workload(new_tokens=9, chat=True, prefix="so: ")
    assert workload_for(refs, asked, task="text-generation") == asked
    with pytest.raises(InputError, match="--new-tokens"):
        workload_for(refs, asked, task="text-classification")
    with pytest.raises(InputError, match="at least 1"):
        workload_for(refs, Workload(new_tokens=0), task="text-generation")
