"""``hasten size --this-host``: a device for the catalogue that was measured, not looked up.

Times small random encoders in the runtimes that ``hasten optimize`` would use (their costs are fitted by
:mod:`hasten.plan.sizing.fit`), the peaks of bandwidth and arithmetic, and what a process takes; keeps the result in the
user's cache. Knows the runtimes; the fit knows none.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from hasten.atomic import write_atomically
from hasten.ledger import plain
from hasten.measure.host import describe_host, total_memory_bytes, usable_cores
from hasten.measure.peaks import bandwidth_bytes_s, matmul_ops_s
from hasten.measure.worker import Worker
from hasten.plan.sizing.figures import Figure, assumed
from hasten.plan.sizing.fit import Work, fit_layers, fit_memory
from hasten.plan.sizing.hardware import REACH, Device, Reach
from hasten.plan.sizing.memory import Place, activation_bytes, file_bytes
from hasten.plan.sizing.roofline import Engine, work_of
from hasten.plan.sizing.shapes import ModelShape
from hasten.records import Host, InputError, MissingDependency, read_as

NAME = "this-host"
# The runtime configuration that stands for a precision on a CPU.
RUNTIMES: dict[str, dict[str, Any]] = {
    "fp32": {"kind": "onnxruntime"},
    "int8": {"kind": "onnxruntime", "precision": "int8-dynamic"},
}
# (layers, hidden, FFN, heads): thin and wide, shallow and deeper; no shape that anybody publishes.
SHAPES = (
    (2, 128, 512, 4),
    (4, 256, 768, 4),
    (2, 512, 2048, 8),
    (6, 320, 1280, 5),
    (3, 640, 2560, 10),
    (1, 1024, 4096, 16),
)
# Shapes that are published (MiniLM-L6, DistilBERT): timed, but kept from the fit, to see how far it is off.
HELD_OUT = ((6, 384, 1536, 12), (6, 768, 3072, 12))
# (rows, tokens) of a request; the last one holds the most memory.
REQUESTS = ((1, 8), (1, 24), (1, 64), (1, 192), (4, 32), (8, 96))
_VOCABULARY = 8192
_WARM_S, _TIMED_S = 0.4, 0.6
_FEWEST, _MOST = 10, 100
_FORM = 1  # of the cache file
_WATTS = assumed(65.0, "no meter was read; give --hardware-file for your own figure")
_PRICE = assumed(0.10, "a machine that you own: purchase and power over three years; edit to yours")


@dataclass(frozen=True, slots=True)
class HostFit:
    """What was learnt of this host; ``key`` says on which processor, with which threads and versions."""

    key: str
    device: Device
    points: tuple[dict[str, Any], ...]


def measured_host(*, again: bool = False, tell: Callable[[str, int, int], None] | None = None) -> HostFit:
    """This host as a device; measured in about two minutes, and read from the cache after that.

    Raises InputError or MissingDependency where nothing can be measured.
    """
    _require_runtime()
    cores = usable_cores()
    host = describe_host(cores=cores, threads=len(cores))
    path, key = _cache_file(), _key(host)
    if not again and (found := _read(path, key)) is not None:
        return found
    points = list(_measure(cores, tell or (lambda _what, _done, _total: None)))
    made = HostFit(key, _device(host, [p for p in points if tuple(p["proportions"]) not in HELD_OUT]), tuple(points))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(plain(made), indent=1) + "\n")
    return made


def held_out(fit: HostFit) -> list[dict[str, Any]]:
    """The points that the fit has not seen, with ``predicted_ms`` and, where memory was read, ``predicted_bytes``."""
    found = [p for p in fit.points if tuple(p["proportions"]) in HELD_OUT]
    return [{**p, **predictions(fit.device, p)} for p in found]


def predictions(device: Device, point: dict[str, Any]) -> dict[str, float]:
    """What is said of a point's time and of its process."""
    shape = shape_of(*point["proportions"], vocab=point["vocab"])
    place = Place(shape, device, point["precision"])
    held = place.needed(context=point["tokens"], sequences=point["rows"]).total
    seconds = Engine(place).prefill_s(point["tokens"], sequences=point["rows"])
    return {"predicted_ms": 1e3 * seconds, "predicted_bytes": held}


def shape_of(layers: int, hidden: int, ffn: int, heads: int, *, vocab: int = _VOCABULARY) -> ModelShape:
    """An encoder of these proportions."""
    name = f"encoder-{layers}x{hidden}"
    return ModelShape(
        name=name, title=name, kind="encoder", layers=layers, hidden=hidden, heads=heads, ffn=ffn, vocab=vocab,
        max_context=512,
    )  # fmt: skip


# ------------------------------------------------------------------ measuring


def _measure(cores: tuple[int, ...], tell: Callable[[str, int, int], None]) -> Iterator[dict[str, Any]]:
    shapes = (*SHAPES, *HELD_OUT)
    total, done = len(shapes) * len(RUNTIMES), 0
    with tempfile.TemporaryDirectory() as scratch:
        for number, proportions in enumerate(shapes):
            for precision, runtime in RUNTIMES.items():
                tell(f"timing an encoder of {proportions[0]} layers, {proportions[1]} wide, {precision}", done, total)
                folder = Path(scratch) / f"{number}-{precision}"
                yield from timed(proportions, runtime, precision=precision, folder=folder, cores=cores)
                done += 1


def timed(
    proportions: tuple[int, int, int, int], runtime: dict[str, Any], *, precision: str, folder: Path,
    cores: tuple[int, ...], requests: Sequence[tuple[int, int]] = REQUESTS, vocab: int = _VOCABULARY,
    alone: bool = False,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Medians of one random encoder's requests, each as plain data. ``memory`` marks those whose process held no more
    than they need: each in one of its own when they are to be ``alone``, else the first and the largest."""
    with Worker.start(cores=cores, threads=len(cores)) as builder:
        size = builder.call(
            "hasten.pipeline.synthetic:export_encoder", proportions=proportions, vocab=vocab, runtime=runtime,
            folder=folder,
        )  # fmt: skip
    for group in [[one] for one in requests] if alone else [requests]:
        with Worker.start(cores=cores, threads=len(cores)) as worker:
            facts = worker.open(
                "hasten.pipeline.jobs:open_artifact", folder=folder / "model", config=runtime, threads=len(cores),
                cores=cores,
            )  # fmt: skip
            for number, (rows, tokens) in enumerate(group):
                times = _steady_ms(worker, partial(_random, rows, tokens, vocab, names=facts.input_names))
                yield {
                    "proportions": proportions, "vocab": vocab, "precision": precision, "rows": rows,
                    "tokens": tokens, "ms": statistics.median(times), "bytes": size,
                    "peak_rss_bytes": worker.stats().peak_rss_bytes, "memory": number in (0, len(group) - 1),
                }  # fmt: skip


def _steady_ms(worker: Worker, request: Callable[[int], dict[str, Any]]) -> list[float]:
    """Times after the first calls, which still take memory from the system."""
    one = statistics.median(worker.time([request(n) for n in range(3)])) / 1e3
    warm, timed = (min(_MOST, max(_FEWEST, round(seconds / one))) for seconds in (_WARM_S, _TIMED_S))
    worker.time([request(n) for n in range(warm)])
    return worker.time([request(n) for n in range(timed)])


def _random(rows: int, tokens: int, vocab: int, seed: int, *, names: Sequence[str]) -> dict[str, Any]:
    made = {
        "input_ids": np.random.default_rng(seed).integers(0, vocab, (rows, tokens)),
        "attention_mask": np.ones((rows, tokens), dtype=np.int64),
        "token_type_ids": np.zeros((rows, tokens), dtype=np.int64),
    }
    return {name: made[name] for name in names}


# ------------------------------------------------------------------ fitting


def _device(host: Host, points: Sequence[dict[str, Any]]) -> Device:
    def measured(value: float, how: str) -> Figure:
        return Figure(value, "measured", how)

    ops = {name: measured(value, "matrix products timed here") for name, value in matmul_ops_s().items()}
    peak = measured(1.0, "the peaks were measured as a program reaches them")
    usual = REACH["cpu"]
    return Device(
        name=NAME, title=f"{host.cpu}, {len(host.cores_used)} cores", kind="cpu",
        memory_bytes=measured(total_memory_bytes(), "what this process may use"),
        bandwidth_bytes_s=measured(bandwidth_bytes_s(), "a sum over an array larger than the caches"),
        watts=_WATTS, usd_per_h=_PRICE, ops_per_s=ops, reach=Reach(peak, peak, usual.pass_s, usual.layer_s),
        fits={p: fit_layers([_timed(x) for x in points if x["precision"] == p]) for p in RUNTIMES},
        memory_fits={
            p: fit_memory([_held(x) for x in points if x["precision"] == p and x["memory"]]) for p in RUNTIMES
        },
    )  # fmt: skip


def _timed(point: dict[str, Any]) -> tuple[Hashable, Work, float]:
    shape = shape_of(*point["proportions"], vocab=point["vocab"])
    work = work_of(shape, tokens=point["tokens"], sequences=point["rows"])
    return tuple(point["proportions"]), work, point["ms"] / 1e3


def _held(point: dict[str, Any]) -> tuple[float, float, float]:
    """(bytes of the file, of the activations, of the process), the first two by the formulas that predict them."""
    shape = shape_of(*point["proportions"], vocab=point["vocab"])
    precision, tokens = point["precision"], point["tokens"] * point["rows"]
    live = activation_bytes(shape, precision, tokens=tokens, sequences=point["rows"]).value
    return file_bytes(shape, precision), live, point["peak_rss_bytes"]


# ------------------------------------------------------------------ the cache


def _cache_file() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("hasten") / "this-host.json"


def _key(host: Host) -> str:
    versions = {name: host.versions.get(name) for name in ("onnxruntime", "torch")}
    shapes = {"form": _FORM, "shapes": (*SHAPES, *HELD_OUT), "requests": REQUESTS}
    facts = {"cpu": host.cpu, "cores": len(host.cores_used), "versions": versions, **shapes}
    return json.dumps(facts, sort_keys=True)


def _read(path: Path, key: str) -> HostFit | None:
    """What was measured on the same host with the same versions; ``None`` where there is no such thing."""
    try:
        found = read_as(HostFit, json.loads(path.read_text()))
    except (OSError, ValueError):
        return None
    return found if found.key == key else None


def _require_runtime() -> None:
    """Raise where ONNX Runtime, or what exports to it, is missing: there is nothing to time then."""
    from hasten.runtimes import get_runtime

    probe = get_runtime("onnxruntime").probe()
    if not probe.available:
        raise InputError(f"--this-host: {probe.reason}", expected="ONNX Runtime", remedy=str(probe.remedy))
    for library, extra in (("torch", "optimize"), ("transformers", "optimize"), ("onnxscript", "onnxruntime")):
        if find_spec(library) is None:
            raise MissingDependency(library, extra=extra)
