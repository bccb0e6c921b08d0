"""Step by step from a plain model to a fast one: what does each stage bring?

``stages.py [--model bert-base|gpt2-medium|t5-large] [--seconds S]``: shapes of the real models with random weights,
which say nothing about quality and all about speed. The stages: eager PyTorch in fp32; weights in eight bits; half of
the layers' multiplications cut away as well; the fastest runtime for that. Latency (p50, p95), rows a second and peak
memory in a process of their own, as ratios to the first stage, beside the published 2.5x (BERT-Base), 2.3x (GPT-2
Medium) and 2.5x (T5-Large) in latency and 4x in memory. Writers read 128 tokens and write 16.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from packaged import Kept

from hasten.measure.host import instruction_sets, usable_cores
from hasten.measure.throughput import throughput
from hasten.measure.worker import Worker
from hasten.passes import configs, run_pass
from hasten.passes.calibration import Calibration
from hasten.records import Config, Rejected, config_to_dict
from hasten.runtimes import get_runtime
from hasten.runtimes.generation import Generation
from hasten.runtimes.generation_spaces import generation_space
from hasten.runtimes.onnxruntime import OnnxRuntimeConfig
from hasten.runtimes.openvino import OpenVinoConfig
from hasten.runtimes.torch import TorchConfig
from hasten.tasks import get_task

TOKENS, NEW_TOKENS = 128, 16
REQUESTS, ANSWERS = 40, 15  # measured one by one: an answer takes seconds
PUBLISHED_MEMORY = 4.0


@dataclass(frozen=True)
class Shape:
    """``make`` gives the model, ``published`` is the paper's ratio of latencies."""

    task: str
    make: Callable[[], Any]
    vocabulary: int
    published: float


def bert() -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(BertConfig(num_labels=2))


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_embd=1024, n_layer=24, n_head=16))


def t5() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 1024, "d_kv": 64, "d_ff": 4096, "num_layers": 24, "num_decoder_layers": 24, "num_heads": 16}
    return T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0))


SHAPES = {
    "bert-base": Shape("text-classification", bert, 30522, 2.5),
    "gpt2-medium": Shape("text-generation", gpt2, 50257, 2.3),
    "t5-large": Shape("summarization", t5, 32128, 2.5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=sorted(SHAPES), help="only this one")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement of throughput")
    options = parser.parse_args()
    kept = Kept(
        "families/stages", "from eager fp32 over eight bits and pruning to the fastest runtime: latency and memory",
        {"tokens": TOKENS, "new_tokens": NEW_TOKENS, "seconds": options.seconds, "threads": len(usable_cores())},
    )  # fmt: skip
    for name in [options.model] if options.model else SHAPES:
        measure(name, kept, seconds=options.seconds)


def measure(name: str, kept: Kept, *, seconds: float) -> None:
    """The stages of one model that are not there yet; each begins where the one before ended."""
    shape = SHAPES[name]
    wrapper = pruned = None
    for stage, keep, candidates in stages_of(shape):
        if kept.has(model=name, stage=stage):
            continue
        if wrapper is None:
            wrapper = wrapped(shape)
        row: dict[str, Any] = {"model": name, "stage": stage}
        try:
            if keep is not None and pruned is None:
                pruned = cut(wrapper, shape, keep=keep)
            chosen = pruned if keep is not None else wrapper
            found = min(
                (tried(chosen, shape, runtime, seconds=seconds) for runtime in candidates), key=lambda r: r["p50_ms"]
            )
        except Rejected as error:
            kept.add({**row, "rejected": str(error)})
            continue
        kept.add({**row, **found, **ratios(found, kept, name, shape)})


def stages_of(shape: Shape) -> list[tuple[str, float | None, list[Config]]]:
    """(name, share of the multiplications that stays, runtimes of which the fastest counts)."""
    writes = shape.task != "text-classification"
    instructions, threads = instruction_sets(), len(usable_cores())
    needs = next((n for n in ("avx512_vnni", "avx_vnni", "amx_int8") if n in instructions), None)
    eight = OnnxRuntimeConfig(precision="int8-dynamic", fusion=False, needs=needs, reduce_range=needs is None)
    fast: list[Config]
    if writes:
        spaces = (
            generation_space(name, instructions=instructions, threads=threads) for name in ("onnxruntime", "openvino")
        )
        # A cache in 8 bits pays at long contexts, and this is a short one.
        fast = [
            c
            for s in spaces
            for c in s
            if getattr(c, "precision", "fp32") != "fp32" and not getattr(c, "kv_cache", None)
        ]
    else:
        fast = [OnnxRuntimeConfig(precision="int8-dynamic", needs=needs, reduce_range=needs is None),
                OpenVinoConfig(precision="int8")]  # fmt: skip
    return [("baseline", None, [TorchConfig()]), ("quantized", None, [eight]), ("pruned", 0.5, [eight]),
            ("runtime", 0.5, fast)]  # fmt: skip


def wrapped(shape: Shape) -> Any:
    import torch

    from hasten.models.reshape import prepared

    torch.manual_seed(0)
    model = prepared(shape.make().eval())
    return get_task(shape.task).wrap_model(model, pooling=None, normalize=False).eval()


def cut(wrapper: Any, shape: Shape, *, keep: float) -> Any:
    """A copy with the largest heads and neurons; raises Rejected for a family that cannot lose them."""
    config = configs(["magnitude_units"])["magnitude_units"](keep=keep)
    return run_pass(copy.deepcopy(wrapper), config, Calibration(requests_of(shape, count=4)))


def requests_of(shape: Shape, *, count: int) -> list[dict[str, np.ndarray]]:
    """Prompts of one length: random tokens behind the special ones."""
    draw = np.random.default_rng(0)
    made = []
    for _ in range(count):
        ids = draw.integers(1000, shape.vocabulary, (1, TOKENS)).astype(np.int64)
        made.append({"input_ids": ids, "attention_mask": np.ones_like(ids)})
        if shape.task == "text-classification":
            made[-1]["token_type_ids"] = np.zeros_like(ids)
    return made


def tried(wrapper: Any, shape: Shape, runtime: Any, *, seconds: float) -> dict[str, Any]:
    """Export, then open and time in a fresh process."""
    writes, cores = shape.task != "text-classification", usable_cores()
    requests = requests_of(shape, count=ANSWERS if writes else REQUESTS)
    generation = Generation(new_tokens=NEW_TOKENS, ignore_ends=True, start=tuple(wrapper.start)) if writes else None
    with tempfile.TemporaryDirectory() as scratch:
        folder, cache = Path(scratch) / "model", Path(scratch) / "cache"
        folder.mkdir()
        cache.mkdir()
        get_runtime(runtime.kind).export(
            copy.deepcopy(wrapper), runtime, calibration=requests[:8], folder=folder, cache=cache
        )
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        with Worker.start(cores=cores, threads=len(cores)) as worker:
            worker.open(
                "hasten.pipeline.jobs:open_artifact",
                folder=folder,
                config=config_to_dict(runtime),
                threads=len(cores),
                cores=cores,
            )
            worker.spans(requests[:3], generation=generation)
            times = np.array([whole for whole, _ in worker.spans(requests, generation=generation)])
            rate = throughput(worker, requests, concurrency=1, seconds=seconds, batch=1, generation=generation)
            peak = worker.stats().peak_rss_bytes
    return {
        "runtime": f"{runtime.kind} {runtime.label}", "p50_ms": float(np.median(times)),
        "p95_ms": float(np.percentile(times, 95)), "rows_per_s": rate, "peak_rss_bytes": peak, "bytes": size,
        "requests": len(requests),
    }  # fmt: skip


def ratios(found: dict[str, Any], kept: Kept, name: str, shape: Shape) -> dict[str, Any]:
    """To the first stage, beside what was published."""
    first = next((r for r in kept.rows if r["model"] == name and r["stage"] == "baseline" and "p50_ms" in r), None)
    if first is None:
        return {}
    return {
        "latency_ratio": first["p50_ms"] / found["p50_ms"], "published_latency_ratio": shape.published,
        "throughput_ratio": found["rows_per_s"] / first["rows_per_s"],
        "memory_ratio": first["peak_rss_bytes"] / found["peak_rss_bytes"],
        "size_ratio": first["bytes"] / found["bytes"], "published_memory_ratio": PUBLISHED_MEMORY,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
