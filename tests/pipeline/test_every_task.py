"""Every task through the same loop: read, split, run, score, exported alike, bundled, predicted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from native_here import native_only
from own_core import own_core
from task_models import GENERATIVE, save_task_model, save_task_rows
from tiny_models import SIZES, SPECIAL, WORDS, save_tokenizer

import hasten
from hasten.bundle.answers import scored
from hasten.measure.writing import answered
from hasten.models.load import load_checkpoint
from hasten.pipeline.jobs import describe
from hasten.pipeline.lessons import used
from hasten.pipeline.material import outputs_of
from hasten.pipeline.prepare import unadapted
from hasten.pipeline.workbench import Workbench
from hasten.records import ModelRef, Rejected
from hasten.runtimes import get_runtime
from hasten.runtimes.native import NativeConfig
from hasten.runtimes.onnxruntime import OnnxRuntimeConfig
from hasten.runtimes.openvino import OpenVinoConfig
from hasten.runtimes.parity import parity
from hasten.runtimes.torch import TorchConfig
from hasten.tasks import TASKS, get_task

# What a record must say, and what goes in when a row is asked for alone.
PREDICTED = {
    "text-classification": ("w1 w2", {"label", "score", "scores"}),
    "text-regression": (("w1 w2", "w3"), {"score"}),
    "token-classification": ("w1  w2 w3", {"entities", "tags"}),
    "question-answering": (("w1 w2", "w3 w4 w5"), {"answer", "start", "end", "score", "no_answer_score"}),
    "language-modeling": ("w1 w2 w3", {"log_probability", "tokens", "perplexity", "bits_per_byte"}),
    "multiple-choice": (
        {"question": "w1 w2", "choices": ["w3", "w4 w5"]},
        {"choice", "text", "log_probabilities"},
    ),
}


# Two answers, or two next tokens, that are all but equally likely may change places: their scores may not.
SURE = {"question-answering": slice(2, 4), "language-modeling": slice(0, 2)}
# No right answer to learn from.
UNTAUGHT = ("feature-extraction",)


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Workbench]:
    """A workbench a task, made when it is first asked for."""

    class Made(dict[str, Workbench]):
        def __missing__(self, task: str) -> Workbench:
            folder = tmp_path_factory.mktemp(task)
            model, rows = save_task_model(folder / "model", task), save_task_rows(folder, task)
            self[task] = hasten.workbench(model, task=task, data=rows, max_length=48)
            return self[task]

    return Made()


@pytest.mark.parametrize("task", TASKS)
def test_splits_are_disjoint_and_scores_are_finite(task: str, benches: dict[str, Workbench]) -> None:
    bench = benches[task]
    parts = [set(p.index) for p in (bench.prepared.calibration, bench.prepared.selection, bench.prepared.test)]
    assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
    found = bench.score(bench.model())
    assert np.isfinite(found.value)
    assert found.n == len(bench.prepared.test)
    assert all(np.isfinite(x) for x in found.others.values())


@pytest.mark.parametrize("task", TASKS)
def test_targets_teach(task: str, benches: dict[str, Workbench]) -> None:
    """The wrapper's loss is finite on the task's own targets, and its gradient reaches the layers."""
    import torch

    bench = benches[task]
    calibration, model = bench.calibration(), bench.model()
    assert (calibration.targets is None) == (task in UNTAUGHT)
    if calibration.targets is None:
        return
    assert len(calibration.targets) == len(calibration.rows)
    batch, targets = next(iter(calibration.batches(batch=8)))
    with torch.enable_grad():
        loss = model.loss(model(**batch), targets)
        loss.backward()
    assert torch.isfinite(loss)
    assert loss.ndim == 0
    assert any(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in model.hf.base_model.parameters())


# It runs encoders, and decoders without one.
UNKNOWN_TO_NATIVE = GENERATIVE[1:]
# Few buckets: OpenVINO compiles anew for each, and they are looked at in tests/runtimes/test_contract.py.
RUN = (
    TorchConfig(), OnnxRuntimeConfig(), OpenVinoConfig(buckets=(16, 64)),
    pytest.param(NativeConfig(), marks=native_only),
)  # fmt: skip


@pytest.mark.parametrize("config", RUN, ids=lambda c: c.kind)
@pytest.mark.parametrize("task", TASKS)
def test_every_runtime_gives_the_same_outputs(
    task: str, config: object, benches: dict[str, Workbench], tmp_path: Path
) -> None:
    bench, kind = benches[task], config.kind  # type: ignore[attr-defined]
    prepared, part = bench.prepared, bench.prepared.test.head(6)
    for name in ("model", "cache"):
        (tmp_path / name).mkdir()
    runtime, wrapper = get_runtime(kind), bench.model()
    if kind == "native" and task in UNKNOWN_TO_NATIVE:
        with pytest.raises(Rejected, match="export"):
            runtime.export(
                used(prepared.task, wrapper) if task in GENERATIVE else wrapper, config,
                calibration=prepared.calibration_feeds(), folder=tmp_path, cache=tmp_path,
            )  # fmt: skip
        return
    if task in GENERATIVE:
        wrapper = used(prepared.task, wrapper)
        config = replace(config, fusion=False) if isinstance(config, OnnxRuntimeConfig) else config
    runtime.export(
        wrapper, config, calibration=prepared.calibration_feeds(), folder=tmp_path / "model",
        cache=tmp_path / "cache",
    )  # fmt: skip
    session = runtime.open(tmp_path / "model", config, threads=1, cores=(0,))
    what, names = scored(prepared.answers), prepared.input_names
    made = prepared.outputs(part, [answered(session, batch, what) for batch in prepared.batches(part, batch=3)])
    wanted = outputs_of(bench.model(), part, task=prepared.task, input_names=names, answers=prepared.answers)
    assert made.shape == wanted.shape
    same = prepared.task.comparable
    rows = [[session.run(b) for b in prepared.batches(part, batch=n)] for n in (1, 1)]
    assert parity([same(o) for o in rows[0]], [same(o) for o in rows[1]], "fp32") is None
    sure = SURE.get(task, slice(None))
    assert np.allclose(made[..., sure], wanted[..., sure], rtol=2e-2, atol=2e-2)


@pytest.mark.slow
@pytest.mark.usefixtures("short_duels")
@pytest.mark.parametrize(
    ("task", "runtime"),
    [
        ("question-answering", "onnxruntime"), ("image-classification", "onnxruntime"),
        ("language-modeling", "onnxruntime"), pytest.param("token-classification", "native", marks=native_only),
        pytest.param("multiple-choice", "native", marks=native_only),
    ],
)  # fmt: skip
def test_the_same_command_makes_a_bundle(task: str, runtime: str, tmp_path: Path) -> None:
    model, rows = save_task_model(tmp_path / "model", task), save_task_rows(tmp_path, task)
    result = hasten.optimize(
        model, task=task, data=rows, budget="quality_drop<=60%", time="150s", out=tmp_path / "out", cores=own_core(),
        runtimes=(runtime,), techniques=("fp32",), max_length=48,
    )  # fmt: skip
    assert result.outcome == "met", result
    assert result.bundle is not None
    with hasten.load(result.bundle) as bundle:
        if task == "image-classification":
            image = next(p for p in rows.rglob("*.png"))
            (record,) = bundle.predict([{"image": image.read_bytes()}])
            assert set(record) == {"label", "score", "scores"}
        else:
            row, keys = PREDICTED[task]
            (record,) = bundle.predict([row])
            assert set(record) >= keys
    assert hasten.check(result.bundle, data=rows, quality_tolerance=100.0, speed_tolerance=100.0).passed


@pytest.mark.slow
@pytest.mark.usefixtures("short_duels")
def test_passes_are_tried_on_recordings(tmp_path: Path) -> None:
    """Whisper is no family without an adapter: its features are what passes are calibrated on."""
    model = save_task_model(tmp_path / "model", "speech-recognition")
    result = hasten.optimize(
        model, task="speech-recognition", data=save_task_rows(tmp_path, "speech-recognition"),
        budget="quality_drop<=60%", time="120s", out=tmp_path / "out", cores=own_core(), runtimes=("torch",),
        techniques=("fp32", "low_rank", "gptq"), new_tokens=6,
    )  # fmt: skip
    assert result.outcome in ("met", "baseline_best"), result
    assert not any("adapter" in w for w in result.verdict.warnings)
    built = [t for t in result.run.trials if t.status == "ok" and t.recipe["passes"]]
    assert {p["kind"] for t in built for p in t.recipe["passes"]} == {"low_rank", "gptq"}


@pytest.mark.slow
@pytest.mark.usefixtures("short_duels")
def test_a_family_without_an_adapter_is_optimized_all_the_same(tmp_path: Path) -> None:
    import transformers as t

    config = t.MegatronBertConfig(
        **SIZES, vocab_size=len(SPECIAL) + len(WORDS), max_position_embeddings=66, num_labels=3
    )
    config.id2label = {0: "no", 1: "yes", 2: "maybe"}
    t.MegatronBertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model")
    result = hasten.optimize(
        tmp_path / "model", task="text-classification", data=save_task_rows(tmp_path, "text-classification"),
        budget="quality_drop<=60%", time="150s", out=tmp_path / "out", cores=own_core(), runtimes=("onnxruntime",),
        techniques=("fp32", "int8-dynamic"),
    )  # fmt: skip
    assert result.outcome in ("met", "baseline_best"), result
    assert any("no adapter for the family megatron-bert" in w for w in result.verdict.warnings)
    assert {t.stage for t in result.run.trials if t.status == "ok"} >= {"preflight", "screen"}


def test_a_family_without_an_adapter_gets_what_needs_none(tmp_path: Path) -> None:
    """Its facts say so, and a two-layer copy is never asked for."""
    import transformers as t

    config = t.MegatronBertConfig(**SIZES, vocab_size=len(SPECIAL) + len(WORDS), max_position_embeddings=66)
    t.MegatronBertForSequenceClassification(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    facts = describe(load_checkpoint(ModelRef(str(tmp_path)), task=get_task("text-classification")))
    assert facts.layers == 0
    assert "no adapter for the family megatron-bert" in unadapted(facts)[0]
