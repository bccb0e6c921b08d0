"""Encoders on the native runtime against ONNX Runtime int8, OpenVINO int8 and torch eager fp32, side by side.

    encoders.py [--model FOLDER] [--shapes banking77,banking77-small,base16,base128,base512,base8x64] [--turns 30]

``banking77``: the checkpoint's classifier on Banking77's rows at their real lengths, one at a time, and its accuracy on
all test rows. ``banking77-small``: three of its six layers, distilled (what ``compression/banking77.py 40m 1pt``
chose), on all runtimes, against the whole one in eager. ``base16`` and its kin: BERT-base's shape with random weights,
one row of so many tokens; ``base8x64``: eight rows of 16 to 64 tokens.

Targets: banking77 2.0x over the best int8 peer and 12x over eager; banking77-small 25x over eager at most 1 pt below
it; base16 1.8x, base128 1.1x, base512 0.95x, base8x64 1.3x over the best int8 peer.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "compression"))
from banking import DATA, MODEL, Lesson
from common import RESULTS, write
from contest import Side, Times, contest, outputs

from hasten.measure.host import instruction_sets, usable_cores
from hasten.native import missing
from hasten.passes import run_pass
from hasten.passes.distillation import DistillConfig
from hasten.passes.layers import LayersConfig
from hasten.records import Config
from hasten.runtimes import get_runtime
from hasten.runtimes.native import NativeConfig
from hasten.runtimes.onnxruntime import OnnxRuntimeConfig
from hasten.runtimes.openvino import OpenVinoConfig
from hasten.runtimes.torch import TorchConfig

SHAPES = ("banking77", "banking77-small", "base16", "base128", "base512", "base8x64")
NATIVE, ORT, OPENVINO, EAGER = "native int8", "onnxruntime int8", "openvino int8", "torch fp32"
PEERS = (ORT, OPENVINO)
# Shapes of the checkpoint, and what is done to it before it is exported.
TAUGHT: Mapping[str, Sequence[Config]] = {
    "banking77": (), "banking77-small": (LayersConfig(count=3), DistillConfig(epochs=4)),
}  # fmt: skip
_WHAT = ("native/encoders", "native int8 against the int8 of ONNX Runtime and OpenVINO, and against torch eager")
_SHORT = 32  # tokens of a request
_VNNI = ("avx512_vnni", "avx_vnni", "amx_int8")
Requests = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Workload:
    """``macs``: of the layers' matrices and of attention, in an average request."""

    requests: Requests
    tokens: float
    macs: float
    weights: int


def main() -> None:
    asked = _asked()
    if missing() is not None:
        sys.exit(f"nothing to measure: {missing()}")
    found: dict[str, Any] = {"peaks": peaks(), "workloads": earlier()}
    with tempfile.TemporaryDirectory() as scratch:
        for shape in [shape for shape in asked.shapes if shape in TAUGHT]:
            if not (asked.model.is_dir() and DATA.is_dir()):
                print(f"{shape} is left out: {asked.model} or {DATA} is not there")
                continue
            figures = banking77(Path(scratch) / shape, asked, found["peaks"], passes=TAUGHT[shape])
            found["workloads"][shape] = figures
            write(*_WHAT, found)
        based = [shape for shape in asked.shapes if shape not in TAUGHT]
        if based:
            sides = base_sides(Path(scratch) / "base")
            for shape in based:
                found["workloads"][shape] = measured(sides, base_workload(shape), asked, found["peaks"])
                write(*_WHAT, found)


def earlier() -> dict[str, Any]:
    """What other calls found of other shapes."""
    path = RESULTS / f"{_WHAT[0]}.json"
    return dict(json.loads(path.read_text())["workloads"]) if path.is_file() else {}


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--shapes", type=lambda text: text.split(","), default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--per-turn", type=int, default=20)
    asked = parser.parse_args()
    unknown = [shape for shape in asked.shapes if shape not in SHAPES]
    if unknown:
        parser.error(f"--shapes {','.join(unknown)}: there are {', '.join(SHAPES)}")
    return asked


# --------------------------------------------------------------------------- workloads


def banking77(
    scratch: Path, asked: argparse.Namespace, peak: Mapping[str, float], *, passes: Sequence[Config]
) -> dict[str, Any]:
    """Times at real lengths, and accuracy on the rows of both halves of the test set."""
    lesson = Lesson(model=asked.model)
    bench, model = lesson.bench, lesson.model()
    prepared, labels = bench.prepared, {name: i for i, name in enumerate(bench.facts.labels)}
    for config in passes:
        model = run_pass(model, config, lesson.calibration())
    sides = exported(model, prepared.calibration_feeds(), scratch, eager=lesson.model())
    parts = (prepared.selection, prepared.test)
    rows = [row for part in parts for row in prepared.batches(part, batch=1)]
    truth = np.array([labels[str(label)] for part in parts for label in prepared.rows_of(part).labels or ()])
    work = workload(model, rows)
    figures = measured(sides, work, asked, peak)
    said = {side.name: outputs(side, rows).argmax(axis=1) for side in sides}
    figures["accuracy"] = {name: 100 * float((answers == truth).mean()) for name, answers in said.items()}
    figures["same_answer_as_eager"] = {name: 100 * float((a == said[EAGER]).mean()) for name, a in said.items()}
    figures["rows"] = len(rows)
    return figures


def base_sides(scratch: Path) -> list[Side]:
    feeds = [one_row(np.random.default_rng(n), (int(np.random.default_rng(n).integers(8, 512)),)) for n in range(32)]
    return exported(base_model(), feeds, scratch)


def base_model() -> Any:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from hasten.tasks.wrappers import LogitsWrapper

    torch.manual_seed(0)
    return LogitsWrapper(BertForSequenceClassification(BertConfig(num_labels=2))).eval()


def base_workload(shape: str) -> Workload:
    draw = np.random.default_rng(0)
    if shape == "base8x64":
        rows = [one_row(draw, (64, *map(int, draw.integers(16, 65, 7)))) for _ in range(16)]
    else:
        rows = [one_row(draw, (int(shape.removeprefix("base")),)) for _ in range(16)]
    return workload(base_model(), rows)


def one_row(draw: np.random.Generator, lengths: tuple[int, ...]) -> dict[str, Any]:
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    ids = draw.integers(1000, 30000, mask.shape) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def workload(wrapper: Any, requests: Requests) -> Workload:
    from hasten.models import adapter_for
    from hasten.passes.matrices import encoder_matrices

    weights = sum(matrix.linear.weight.numel() for matrix in encoder_matrices(wrapper, what="a benchmark"))
    adapter = adapter_for(wrapper.hf.config.model_type)
    assert adapter is not None
    parts = [adapter.attention(layer) for layer in adapter.layers(wrapper.hf)]
    inner = sum(part.heads * part.head_dim for part in parts)
    lengths = [request["attention_mask"].sum(axis=1) for request in requests]
    macs = [weights * float(own.sum()) + 2 * inner * float((own.astype(float) ** 2).sum()) for own in lengths]
    tokens = [float(own.sum()) for own in lengths]
    return Workload(requests, float(np.mean(tokens)), float(np.mean(macs)), weights)


def exported(wrapper: Any, feeds: Requests, scratch: Path, *, eager: Any = None) -> list[Side]:
    """All four, made of the same weights, or torch of another model's."""
    vnni = next((name for name in _VNNI if name in instruction_sets()), None)
    configs: dict[str, Config] = {
        NATIVE: NativeConfig(precision="int8-dynamic"),
        ORT: OnnxRuntimeConfig(precision="int8-dynamic", needs=vnni, reduce_range=vnni is None),
        OPENVINO: OpenVinoConfig(precision="int8"),
        EAGER: TorchConfig(),
    }
    sides = []
    (scratch / "cache").mkdir(parents=True)
    for name, config in configs.items():
        folder = scratch / config.kind
        folder.mkdir()
        model = eager if eager is not None and name == EAGER else wrapper
        get_runtime(config.kind).export(
            model, config, calibration=list(feeds), folder=folder, cache=scratch / "cache"
        )  # fmt: skip
        sides.append(Side(name, folder, config))
        print(f"made {name}", flush=True)
    return sides


# --------------------------------------------------------------------------- figures


def measured(
    sides: Sequence[Side], work: Workload, asked: argparse.Namespace, peak: Mapping[str, float]
) -> dict[str, Any]:
    # Long requests say as much in fewer of them.
    per_turn = max(2, round(asked.per_turn * min(1.0, _SHORT / work.tokens)))
    times = contest(sides, work.requests, rounds=asked.rounds, turns=asked.turns, per_turn=per_turn)
    best = min(PEERS, key=times.p50)
    figures: dict[str, Any] = {
        "tokens": work.tokens,
        "rounds": asked.rounds,
        "turns": asked.turns,
        "per_turn": per_turn,
        "sides": {side.name: times.row(side.name) | roofline(times, side.name, work, peak) for side in sides},
        "native_faster_than": {side.name: times.faster(NATIVE, side.name) for side in sides if side.name != NATIVE},
        "best_int8_peer": best,
    }
    for name, row in figures["sides"].items():
        ratio = figures["native_faster_than"].get(name)
        against = f", native {ratio['estimate']:.2f}x ({ratio['low']:.2f}-{ratio['high']:.2f})" if ratio else ""
        print(
            f"  {work.tokens:6.1f} tokens {name:18} p50 {row['p50']:8.3f} ms, p95 {row['p95']:8.3f}{against}",
            flush=True,
        )
    return figures


def roofline(times: Times, name: str, work: Workload, peak: Mapping[str, float]) -> dict[str, float]:
    """Operations a second (a multiply and an add are two) and weight bytes a second that the median request makes, as
    shares of what this host does; padding that a runtime computes is not counted as work."""
    seconds = times.p50(name) / 1e3
    kind, size = ("fp32", 4) if name == EAGER else ("int8", 1)
    ops, read = 2 * work.macs / seconds, size * work.weights / seconds
    return {
        "gops": ops / 1e9, "share_of_peak_gops": ops / peak[f"{kind}_ops_s"],
        "weights_gb_s": read / 1e9, "share_of_peak_gb_s": read / peak["bytes_s"],
    }  # fmt: skip


def peaks() -> dict[str, float]:
    """What this host was seen to do: the larger of torch's and the native engine's own square products in int8."""
    import torch

    from hasten.measure.peaks import bandwidth_bytes_s, matmul_ops_s

    torch.set_num_threads(len(usable_cores()))
    theirs = matmul_ops_s()
    own = native_ops_s()
    return {
        "bytes_s": bandwidth_bytes_s(), "fp32_ops_s": theirs["fp32"], "torch_int8_ops_s": theirs.get("int8", 0.0),
        "native_int8_ops_s": own, "int8_ops_s": max(theirs.get("int8", 0.0), own),
    }  # fmt: skip


def native_ops_s() -> float:
    """Of one product of 512 rows with a matrix of 1,024 x 1,024, the best of a few tries."""
    import time

    from hasten.native.engine import Engine
    from hasten.native.program import Buffer, Features, Linear, Program
    from hasten.native.tensors import Int8

    rows, side = 512, 1024
    draw = np.random.default_rng(0)
    weight = Int8(draw.integers(-127, 128, (side, side)).astype(np.int8), np.ones(side, np.float32))
    program = Program((Buffer(side), Buffer(side)), (weight,), (Features(0), Linear(0, 1, 0)), 1)
    features = draw.standard_normal((rows, side)).astype(np.float32)
    cores = usable_cores()
    with Engine(program, threads=len(cores), cores=cores) as engine:
        seconds = []
        for _ in range(30):
            started = time.perf_counter()
            engine.run(None, lengths=[rows], features=features)
            seconds.append(time.perf_counter() - started)
    return 2.0 * rows * side * side / min(seconds)


if __name__ == "__main__":
    main()
