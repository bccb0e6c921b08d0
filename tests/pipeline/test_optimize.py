"""The whole loop on a tiny model: verdict, bundle, report, resume, gate."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from own_core import own_core

import hasten
from hasten.ledger import read_rows
from hasten.pipeline.result import Result, open_result
from hasten.records import InputError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tiny: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Result:
    """One run over ONNX Runtime alone: about a minute."""
    model, rows = tiny
    out = tmp_path_factory.mktemp("run") / "out"
    return hasten.optimize(
        model,
        task="text-classification",
        data=rows,
        budget="quality_drop<=20%",
        time="130s",
        out=out,
        runtimes=("onnxruntime",),
        cores=own_core(),
        techniques=("int8-dynamic",),
    )


def test_ends_with_everything_on_disk(finished: Result) -> None:
    names = {p.name for p in finished.folder.iterdir()}
    assert {"report.html", "trials.jsonl", "verdict.json"} <= names
    assert "work" not in names
    assert ".lock" not in names
    assert finished.outcome == "met", finished
    assert "bundle" in names
    verdict = json.loads((finished.folder / "verdict.json").read_text())
    assert verdict["chosen"]["latency_ms"]["p50"] < verdict["baseline"]["latency_ms"]["p50"]
    assert verdict["speedup"]["low"] <= verdict["speedup"]["estimate"] <= verdict["speedup"]["high"]
    assert (
        sum(verdict["splits"][k] for k in ("calibration", "selection", "test"))
        == 240 - verdict["splits"]["duplicate_rows"]
    )
    assert "MEETS THE BUDGET" in repr(finished)


def test_every_recipe_is_in_the_ledger_once_a_stage(finished: Result) -> None:
    trials = read_rows(finished.folder / "trials.jsonl").trials()
    keys = [(t.recipe_id, t.stage) for t in trials]
    assert len(keys) == len(set(keys))
    assert all(t.reason for t in trials if t.status == "rejected")
    assert {t.stage for t in trials} >= {"preflight", "screen", "contest", "final"}


def test_bundle_predicts_like_the_original(finished: Result, tiny: tuple[Path, Path]) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    texts = ["w1 w2 w3", "w9 " * 20, "unknown words", ""]
    with finished.load() as model:
        records = model.predict(texts)
        assert repr(model).startswith("<hasten bundle text-classification")
        alone = [model.predict([t])[0] for t in texts]
    network = AutoModelForSequenceClassification.from_pretrained(tiny[0]).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny[0])
    for text, record, single in zip(texts, records, alone, strict=True):
        with torch.inference_mode():
            wanted = network(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0].numpy()
        assert set(record) == {"label", "score", "scores"}
        assert record == single
        assert np.isclose(sum(record["scores"].values()), 1.0)
        assert np.abs(np.array(list(record["scores"].values())) - wanted).max() < 0.25


def test_bundle_opens_without_training_code(finished: Result) -> None:
    blocked = ["torch", "transformers", "sklearn", "scipy", "pandas", "onnx", "nncf", "plotly", "jinja2"]
    code = (
        "import sys\n"
        f"for name in {blocked!r}: sys.modules[name] = None\n"
        "import hasten\n"
        f"with hasten.load({str(finished.bundle)!r}) as model: print(model.predict(['w1 w2'])[0]['label'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() in ("no", "yes"), done.stderr


def test_check_passes_and_then_catches_a_regression(finished: Result, tiny: tuple[Path, Path], tmp_path: Path) -> None:
    good = hasten.check(finished.folder / "bundle", data=tiny[1], quality_tolerance=15, speed_tolerance=20)
    assert good.passed, good
    lines = tiny[1].read_text().splitlines()
    swapped = [line[:-3] + "no" if line.endswith("yes") else line[:-2] + "yes" for line in lines[1:]]
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("\n".join([lines[0], *swapped]))
    assert not hasten.check(finished.folder / "bundle", data=wrong, quality_tolerance=15, speed_tolerance=20).passed


def test_the_same_command_again_adds_no_trial(finished: Result, tiny: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished.folder, out)
    before = read_rows(out / "trials.jsonl").trials()
    again = hasten.optimize(
        tiny[0], task="text-classification", data=tiny[1], budget="quality_drop<=20%", time="130s", out=out,
        runtimes=("onnxruntime",), cores=own_core(), techniques=("int8-dynamic",),
    )  # fmt: skip
    after = read_rows(out / "trials.jsonl").trials()
    assert after == before
    assert again.verdict == finished.verdict


def test_another_question_in_the_same_folder_is_refused(finished: Result, tiny: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="another run"):
        hasten.optimize(tiny[0], task="text-classification", data=tiny[1], out=finished.folder, seed=5, time="1m")
    assert open_result(finished.folder).outcome == "met"


@pytest.mark.usefixtures("short_duels")
def test_a_useless_budget_ends_in_an_honest_verdict(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    result = hasten.optimize(
        tiny[0], task="text-classification", data=tiny[1], budget="p50_ms<=0.0001", time="100s", out=tmp_path / "out",
        runtimes=("onnxruntime",), cores=own_core(), techniques=("fusion",),
    )  # fmt: skip
    assert result.outcome == "not_met"
    assert "MISSES THE BUDGET" in result.verdict.sentence
    assert result.bundle is None
    assert (result.folder / "closest-miss" / "manifest.json").is_file()
    assert result.verdict.relaxations
