"""Text that is written, through the whole loop: prepared, taught, measured, bundled, predicted, streamed, checked."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_core import own_core
from task_models import GENERATIVE, save_task_model, save_task_rows

import hasten
from hasten.measure.worker_main import resolve
from hasten.measure.writing import FORCED
from hasten.models.load import load_checkpoint
from hasten.pipeline.arena import compared
from hasten.pipeline.jobs import _eager
from hasten.pipeline.lessons import lesson, taught
from hasten.pipeline.material import outputs_of
from hasten.pipeline.prepare import parity_batches
from hasten.pipeline.workbench import Workbench
from hasten.records import InputError, ModelRef
from hasten.runtimes.generation import DecodingSession
from hasten.runtimes.generation_facts import facts_of
from hasten.runtimes.parity import parity
from hasten.tasks import get_task
from hasten.tasks.generation_wrappers import GenerationWrapper


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    folder = tmp_path_factory.mktemp("text-generation")
    model, rows = save_task_model(folder / "model", "text-generation"), save_task_rows(folder, "text-generation")
    return hasten.workbench(model, task="text-generation", data=rows, max_length=48)


def test_answers_are_as_long_as_the_references(bench: Workbench) -> None:
    answers = bench.prepared.answers
    assert answers is not None
    assert (answers.most, answers.timed) == (5, 5)  # of three or four words, and the end
    assert answers.ends == (5,)
    assert bench.prepared.processor.max_length == 48


def test_requests_have_the_lengths_that_are_asked_for(bench: Workbench) -> None:
    from dataclasses import replace

    prepared = replace(bench.prepared, prompt_tokens=11)
    assert {r["input_ids"].shape for r in prepared.requests(batch=2, count=5, seed=0)} == {(2, 11)}
    longest = max(e.length for part in (bench.prepared.selection, bench.prepared.test) for e in part.examples)
    assert bench.prepared.longest_request(batch=3)["input_ids"].shape == (3, longest)
    for batch in parity_batches(bench.prepared, longest=40, seed=0):
        assert batch["attention_mask"][:, -1].all()


class Here:
    """A worker without a process."""

    def __init__(self, session: Any) -> None:
        self.session = session

    def call_with_session(self, function: str, **kwargs: Any) -> Any:
        return resolve(function)(self.session, **kwargs)


def test_an_export_that_is_right_for_the_prompt_alone_fails_parity(bench: Workbench) -> None:
    from transformers import DynamicCache

    from hasten.runtimes.torch_generation import TorchDecoder

    class Deaf(TorchDecoder):
        """Does not hear what was written."""

        def step(self, ids: Any) -> Any:
            return super().step(np.full_like(ids, 9))

    batches = parity_batches(bench.prepared, longest=40, seed=0)
    assert {batch[FORCED].shape[1] for batch in batches} == {4}
    five = next(batch[FORCED] for batch in batches if len(batch[FORCED]) == 5)
    assert len({tuple(row) for row in five[:4].tolist()}) == 4, "rows that change places are seen"
    wrapper = GenerationWrapper(bench.model().hf).eval()
    facts = facts_of(wrapper, {name: a for name, a in batches[0].items() if name != FORCED})
    fresh = partial(DynamicCache, config=wrapper.hf.config)
    right, deaf = (
        DecodingSession(lambda kind=kind: kind(wrapper.hf, fresh), facts=facts, precision="fp32")
        for kind in (TorchDecoder, Deaf)
    )
    eager = _eager(wrapper, batches)
    assert eager[0].shape[1] == 5
    assert parity(eager, compared(Here(right), batches), "fp32") is None  # type: ignore[arg-type]
    assert parity([e[:, 0] for e in eager], [deaf.run(batch) for batch in batches], "fp32") is None
    reason = parity(eager, compared(Here(deaf), batches), "fp32")  # type: ignore[arg-type]
    assert reason is not None
    assert "differ" in reason


def test_what_eager_torch_writes_is_what_transformers_writes(bench: Workbench) -> None:
    import torch

    prepared, part = bench.prepared, bench.prepared.test.head(6)
    made = outputs_of(
        bench.model(), part, task=prepared.task, input_names=prepared.input_names, answers=prepared.answers
    )
    model = bench.model().hf
    for row, (example,) in zip(made, part.encoded, strict=True):
        ids = torch.from_numpy(example.arrays["input_ids"])[None]
        wanted = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, eos_token_id=5, pad_token_id=1
        )[0, ids.shape[1] :].tolist()
        assert [i for i in row.tolist() if i >= 0] == wanted


def test_a_decoder_is_taught_as_a_language_model(bench: Workbench) -> None:
    assert lesson(bench.prepared.task).name == "language-modeling"
    known = taught(bench.prepared, write=lambda part: pytest.fail(f"{len(part)} rows need no answers"))
    example = known.calibration.encoded[0][0]
    text = known.rows_of(known.calibration).labels[0][0]  # type: ignore[index]
    fresh = example.arrays["input_ids"][example.arrays["fresh"] > 0].tolist()
    assert fresh == [*bench.prepared.processor.ids(text)[:4], 5]
    calibration = bench.calibration()
    assert calibration.targets is not None
    assert calibration.validate(bench.model()) == pytest.approx(100.0)
    for name in GENERATIVE[1:]:
        assert lesson(get_task(name)).name == name


def test_a_pass_learns_and_the_result_still_writes(bench: Workbench) -> None:
    from hasten.passes import configs, run_pass

    config = configs(["distill"])["distill"](epochs=1.0, labels=1.0)
    changed = run_pass(bench.model(), config, bench.calibration())
    found = bench.score(changed)
    assert np.isfinite(found.value)
    assert 0.0 <= found.others["agreement"] <= 100.0


@pytest.mark.parametrize(
    ("made_for", "asked", "message"),
    [
        ("text-generation", "text-classification", "text-generation, language-modeling or multiple-choice"),
        ("text-classification", "text-generation", "this one is for text-classification"),
        ("text-generation", "summarization", "text-generation"),
        ("summarization", "text-generation", "summarization or translation"),
        ("speech-recognition", "summarization", "speech-recognition"),
        ("summarization", "speech-recognition", "summarization or translation"),
    ],
)
def test_a_model_of_another_task_says_what_it_is_for(made_for: str, asked: str, message: str, tmp_path: Path) -> None:
    model = save_task_model(tmp_path / "model", made_for)
    with pytest.raises(InputError, match=message):
        load_checkpoint(ModelRef(str(model)), task=get_task(asked))


@pytest.mark.slow
@pytest.mark.usefixtures("short_duels")
@pytest.mark.parametrize("task", ["text-generation", "summarization"])
def test_without_references_the_original_s_answers_are_forced_and_learnt(task: str, tmp_path: Path) -> None:
    model, rows = save_task_model(tmp_path / "model", task), save_task_rows(tmp_path, task, count=120)
    kept = "prompt" if task == "text-generation" else "document"
    lines = [json.dumps({kept: json.loads(line)[kept]}) for line in rows.read_text().splitlines()]
    rows.write_text("\n".join(lines) + "\n")
    recipe = {"passes": [{"kind": "gptq", "bits": 3, "group": 32}], "runtime": {"kind": "torch"}}
    result = hasten.optimize(
        model, task=task, data=rows, budget="quality_drop<=100%, latency<=10s", time="180s", out=tmp_path / "out",
        cores=own_core(), max_length=32, new_tokens=6, recipe=recipe,
    )  # fmt: skip
    assert result.verdict.chosen is not None, result
    quality, before = (m.figures.quality for m in (result.verdict.chosen, result.verdict.baseline))
    assert quality is not None
    assert before is not None
    assert (quality.metric, before.metric) == ("next_token_agreement", "next_token_agreement")
    assert before.value == 100.0
    assert 0.0 < quality.value < 100.0
    assert not any("alone" in warning for warning in result.verdict.warnings), "both stacks"


@pytest.mark.slow
@pytest.mark.usefixtures("short_duels")
@pytest.mark.parametrize("task", ["text-generation", "translation", "speech-recognition"])
def test_the_same_command_makes_a_bundle_that_writes(task: str, tmp_path: Path) -> None:
    model, rows = save_task_model(tmp_path / "model", task), save_task_rows(tmp_path, task, count=80)
    result = hasten.optimize(
        model, task=task, data=rows, budget="quality_drop<=100%, ttft_ms<=10s, tpot_ms<=10s", time="180s",
        out=tmp_path / "out", cores=own_core(), runtimes=("onnxruntime",), techniques=("fp32",), max_length=32,
    )  # fmt: skip
    assert result.verdict.chosen is not None, result
    figures = result.verdict.chosen.figures
    assert figures.ttft_ms is not None
    assert figures.tpot_ms is not None
    assert figures.latency_ms is not None
    assert figures.ttft_ms.p50 < figures.latency_ms.p50
    assert figures.tokens_per_s is not None
    page = result.report.read_text()
    assert "First token p50" in page
    if result.bundle is None:
        pytest.skip(f"nothing was faster: {result.verdict.sentence}")
    with hasten.load(result.bundle) as bundle:
        row = next(rows.glob("*.wav")).read_bytes() if task == "speech-recognition" else None
        asked = {"text": "w1 w2 w3"} if row is None else {"audio": row}
        (record,) = bundle.predict([asked])
        assert set(record) == {"text", "tokens"}
        pieces = list(bundle.generate(asked))
        assert "".join(pieces).strip() == record["text"]
        assert all(pieces)
        assert len("".join(bundle.generate(asked, new_tokens=1)).split()) <= 1
    assert hasten.check(result.bundle, data=rows, quality_tolerance=100.0, speed_tolerance=100.0).passed
