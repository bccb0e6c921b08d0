"""What passes learn from where an encoder-decoder writes: whole answers, the references or the original's own."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from task_models import save_task_model, save_task_rows

import hasten
from hasten.passes import configs, run_pass
from hasten.pipeline.lessons import lesson, taught, used
from hasten.pipeline.material import outputs_of, written_by
from hasten.pipeline.prepare import Part
from hasten.pipeline.workbench import Workbench
from hasten.tasks.examples import ANSWER
from hasten.tasks.generation_wrappers import PairWrapper, Seq2SeqGenerationWrapper

FEATURES = "input_features"


def never(part: Part) -> Any:
    raise AssertionError(f"{len(part)} rows were to be answered, though there are references")


@pytest.fixture(scope="module", params=["summarization", "translation", "speech-recognition"])
def referred(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    folder = tmp_path_factory.mktemp(request.param)
    count = 240 if request.param == "speech-recognition" else 120
    model, rows = save_task_model(folder / "model", request.param), save_task_rows(folder, request.param, count=count)
    return hasten.workbench(model, task=request.param, data=rows, max_length=40)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    """Documents without summaries, and further ones."""
    folder = tmp_path_factory.mktemp("alone")
    model, rows = save_task_model(folder / "model", "summarization"), save_task_rows(folder, "summarization", count=120)
    documents = [{"document": json.loads(line)["document"]} for line in rows.read_text().splitlines()]
    rows.write_text("".join(json.dumps(row) + "\n" for row in documents))
    more = folder / "more.jsonl"
    more.write_text("".join(json.dumps({"text": f"w{i} w{i + 1} w{i + 2}"}) + "\n" for i in range(4)))
    return hasten.workbench(
        model, task="summarization", data=rows, max_length=40, new_tokens=6, extra_data=more, text_column=None
    )


def test_references_stand_behind_the_first_ids(referred: Workbench) -> None:
    prepared = referred.prepared
    known = taught(prepared, write=never)
    references = prepared.rows_of(prepared.calibration).labels
    assert prepared.answers is not None
    assert references is not None
    assert len(known.calibration) == len(prepared.calibration) > 10
    for (example,), texts in zip(known.calibration.encoded, references, strict=True):
        start, most = prepared.answers.start, prepared.answers.most
        answer = [*prepared.processor.ids(texts[0])[: most - 1], 5]
        assert example.arrays[ANSWER[0]].tolist() == [*start, *answer]
        assert example.arrays["fresh"].tolist() == [0] * len(start) + [1] * len(answer)
    assert known.selection is prepared.selection
    given = referred.calibration()
    assert set(given.rows[0]) == {*prepared.input_names, *ANSWER}
    assert given.targets is not None
    for row, target in zip(given.rows, given.targets, strict=True):
        assert target[target >= 0].tolist() == row[ANSWER[0]][0, len(prepared.answers.start) :].tolist()


def test_passes_take_another_wrapper_than_the_task(referred: Workbench) -> None:
    task, model = referred.prepared.task, referred.model()
    assert isinstance(model, PairWrapper)
    assert model.task == task.name == lesson(task).name
    assert isinstance(used(task, model), Seq2SeqGenerationWrapper)


def test_a_pass_learns_from_answers_and_the_result_still_writes(referred: Workbench) -> None:
    given = replace(referred.calibration(), validate=None)
    before = referred.model()
    config = configs(["distill"])["distill"](epochs=2.0, labels=1.0, logits=1.0, hidden=0.0, batch=8)
    made = run_pass(referred.model(), config, given)

    def loss(model: Any) -> float:
        with torch.no_grad():
            pairs = list(given.batches(batch=8))
            return sum(float(model.loss(model(**batch), goal)) for batch, goal in pairs)

    assert loss(made) < loss(before)
    assert np.isfinite(referred.score(made).value)


def test_without_references_the_original_s_own_answers_are_learnt(alone: Workbench) -> None:
    prepared, given = alone.prepared, alone.calibration()
    assert prepared.answers is not None
    wrote = outputs_of(
        alone.model(), prepared.calibration, task=prepared.task, input_names=prepared.input_names,
        answers=prepared.answers,
    )  # fmt: skip
    assert len(given.rows) == len(prepared.calibration)
    for row, ids in zip(given.rows, wrote, strict=True):
        assert row[ANSWER[0]][0].tolist() == [1, *(i for i in ids.tolist() if i >= 0)]
    assert len(given.extra) == 4
    assert all(ANSWER[0] in row for row in given.extra)


def test_what_there_is_no_time_to_answer_is_left_out(alone: Workbench) -> None:
    write, asked = written_by(alone.checkpoint, alone.prepared), []

    def hurried(part: Part) -> Any:
        asked.append(len(part))
        return write(part.head(7))

    known = taught(alone.prepared, write=hurried)
    assert asked == [len(alone.prepared.calibration) + 4]
    assert len(known.calibration.encoded) == len(known.calibration.index) == 7
    assert known.extra == ()


def test_a_tokenizer_that_does_not_know_the_target_leaves_the_writing_to_the_original(referred: Workbench) -> None:
    class Deaf:
        writes = False

    prepared, asked = replace(referred.prepared, processor=Deaf()), []

    def write(part: Part) -> Any:
        asked.append(len(part))
        return np.full((len(part), 2), 9)

    known = taught(prepared, write=write)
    assert asked == [len(prepared.calibration)]
    assert known.calibration.encoded[0][0].arrays[ANSWER[0]].tolist()[-2:] == [9, 9]


def test_without_references_the_original_s_tokens_are_forced(alone: Workbench) -> None:
    found = alone.score(alone.model())
    assert (found.metric, found.value) == ("next_token_agreement", 100.0)
    other = alone.model()
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(torch.randn_like(weight) * 0.02)
    lower = alone.score(other)
    assert 0.0 < lower.value < 100.0
    names, part = alone.prepared.input_names, alone.prepared.test
    free = replace(alone.prepared.task, forced=False)
    answers = [
        outputs_of(m, part, task=free, input_names=names, answers=alone.prepared.answers)
        for m in (alone.model(), other)
    ]
    strict = free.score(answers[1], alone.prepared.rows_of(part), (), reference=answers[0])
    assert strict.metric == "agreement"
    assert strict.value <= lower.value
    assert alone.calibration().validate(other) < 100.0
