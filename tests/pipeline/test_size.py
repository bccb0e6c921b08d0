"""``hasten size`` from files to the answer: specifications, own models, own measurements, this host."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hasten
from hasten.ledger import Ledger
from hasten.measure.host import usable_cores
from hasten.pipeline import this_host
from hasten.plan.sizing.answer import Sizing
from hasten.plan.sizing.fit import LayerFit
from hasten.plan.sizing.memory import file_bytes
from hasten.plan.sizing.roofline import work_of
from hasten.records import Figures, InputError, Latency, Quality, Trial

SMALL = {
    "num_hidden_layers": 4, "hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048, "vocab_size": 8000,
    "model_type": "llama", "hidden_act": "silu", "max_position_embeddings": 4096,
}  # fmt: skip


def test_a_specification_and_what_is_given_beside_it(tmp_path: Path) -> None:
    spec = tmp_path / "spec.toml"
    spec.write_text(
        'task = "chat"\nrequests_per_s = 2\nslo = "tpot_ms<=100"\nhardware = ["l4"]\nmodels = ["llama-3.2-1b"]\n'
    )
    found = hasten.size(spec=spec, requests_per_s=3.0)
    assert found.request.requests_per_s == 3.0
    best = found.recommendation.best
    assert best is not None
    assert best.option.shape.name == "llama-3.2-1b"
    with pytest.raises(InputError, match="no task"):
        hasten.size(requests_per_s=3.0)


def test_a_checkpoints_folder_is_a_model(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SMALL))
    found = hasten.size(task="chat", models=str(folder), hardware="raspberry-pi-5", slo="tpot_ms<=500")
    assert found.recommendation.best is not None
    assert found.recommendation.best.option.shape.name == str(folder)
    with pytest.raises(InputError, match="no model is called"):
        hasten.size(task="chat", models="llama-9")


def best_name(found: Sizing) -> str:
    best = found.recommendation.best
    assert best is not None
    return best.option.shape.name


def test_own_trials_give_a_curve(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with Ledger.open(folder / "trials.jsonl", run_key="made", header={}) as ledger:
        for number, ms in enumerate((0.5, 1.0, 2.0, 4.0, 8.0)):
            figures = Figures(
                latency_ms=Latency(ms, ms, ms, ms, 100), quality=Quality("accuracy", 93.0 - 2.0 * ms**-0.8, 500, {}),
                bytes=1000 + number, peak_rss_bytes=1000,
            )  # fmt: skip
            recipe = {"passes": [], "runtime": {"kind": "onnxruntime", "precision": "int8-dynamic"}}
            ledger.append_trial(Trial(recipe, f"r{number}", f"r{number}", "contest", "ok", 1.0, figures=figures))
    found = hasten.size(
        task="text-classification", slo="latency_ms<=3", hardware="cpu-vnni-4", trials=(folder,), quality="mnli>=80"
    )
    text = " ".join(found.measured_notes)
    assert "5 on the front" in text
    assert "predicted by the curve: 92" in text
    assert "r2 (quality 91.9, measured) costs" in text
    with pytest.raises(InputError, match=r"nowhere"):
        hasten.size(task="text-classification", hardware="cpu-vnni-4", trials=(tmp_path / "nowhere",))


def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few calls of each request: what is looked at here is that they are timed."""
    monkeypatch.setattr(this_host, "_WARM_S", 0.02)
    monkeypatch.setattr(this_host, "_TIMED_S", 0.05)


def made_host(monkeypatch: pytest.MonkeyPatch, cache: Path, *, key: str | None = None) -> list[int]:
    """A host that is timed in no time: every point is what a known fit says."""
    costs = LayerFit(3e-4, 5e-5, 2e-12, 1e-11, 3e-10, 4e-10, 0.0, 0)
    calls: list[int] = []

    def timed(proportions: tuple[int, int, int, int], *_: Any, precision: str, **__: Any) -> Iterator[dict[str, Any]]:
        calls.append(1)
        shape = this_host.shape_of(*proportions)
        for number, (rows, tokens) in enumerate(this_host.REQUESTS):
            seconds = costs.seconds(work_of(shape, tokens=tokens, sequences=rows)) * (0.5 if precision == "int8" else 1)
            yield {
                "proportions": proportions, "vocab": shape.vocab, "precision": precision, "rows": rows,
                "tokens": tokens, "ms": 1e3 * seconds, "bytes": 1, "memory": number in (0, len(this_host.REQUESTS) - 1),
                "peak_rss_bytes": 1e8 + 2 * file_bytes(shape, precision),
            }  # fmt: skip

    monkeypatch.setattr(this_host, "timed", timed)
    monkeypatch.setattr(this_host, "_cache_file", lambda: cache)
    monkeypatch.setattr(this_host, "bandwidth_bytes_s", lambda: 2e10)
    monkeypatch.setattr(this_host, "matmul_ops_s", lambda: {"fp32": 1e11, "int8": 3e11})
    if key is not None:
        monkeypatch.setattr(this_host, "_key", lambda _host: key)
    return calls


def test_a_host_is_timed_once_and_then_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = made_host(monkeypatch, tmp_path / "host.json")
    first = this_host.measured_host()
    timed = len(calls)
    assert timed == (len(this_host.SHAPES) + len(this_host.HELD_OUT)) * len(this_host.RUNTIMES)
    again = this_host.measured_host()
    assert len(calls) == timed
    assert again.device.fits == first.device.fits
    assert again.device.memory_fits == first.device.memory_fits
    this_host.measured_host(again=True)
    assert len(calls) == 2 * timed
    made_host(monkeypatch, tmp_path / "host.json", key="another processor")
    this_host.measured_host()
    assert json.loads((tmp_path / "host.json").read_text())["key"] == "another processor"
    (tmp_path / "host.json").write_text("{broken")
    assert this_host.measured_host().device.name == this_host.NAME


def test_this_host_joins_the_hardware_and_shows_its_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_host(monkeypatch, tmp_path / "host.json")
    found = hasten.size(task="text-classification", slo="latency_ms<=2000", this_host=True, models="bert-base-uncased")
    best = found.recommendation.best
    assert best is not None
    assert best.option.device.name == "this-host"
    assert best.option.precision in ("fp32", "int8")
    assert found.checked
    assert max(abs(c.error) for c in found.checked) < 0.05  # the points were made of such costs
    assert best.figures["latency_ms"].error is not None


def test_a_random_encoder_is_exported_and_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quickly(monkeypatch)
    cores = usable_cores()[:1]
    made = this_host.timed(
        (1, 32, 64, 2), this_host.RUNTIMES["fp32"], precision="fp32", folder=tmp_path / "made", cores=cores,
        requests=((1, 8), (2, 16)), vocab=100,
    )  # fmt: skip
    points = list(made)
    assert [(p["rows"], p["tokens"], p["memory"]) for p in points] == [(1, 8, True), (2, 16, True)]
    assert all(p["ms"] > 0 and p["peak_rss_bytes"] > 1e7 and p["bytes"] > 1000 for p in points)


@pytest.mark.slow
def test_a_real_host_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(this_host, "_cache_file", lambda: tmp_path / "host.json")
    monkeypatch.setattr(this_host, "SHAPES", this_host.SHAPES[:2])
    monkeypatch.setattr(this_host, "HELD_OUT", ())
    quickly(monkeypatch)
    found = this_host.measured_host()
    assert set(found.device.fits) == {"fp32", "int8"}
    assert all(p["ms"] > 0 and p["peak_rss_bytes"] > 1e7 for p in found.points)
    assert found.device.bandwidth_bytes_s.value > 1e9
    assert found.device.ops_per_s["fp32"].value > 1e9
    assert found.device.memory_fits["fp32"].base > 1e7


def test_a_model_of_the_hub_needs_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=r"no config\.json of nobody/nothing"):
        hasten.size(task="chat", models="nobody/nothing")
