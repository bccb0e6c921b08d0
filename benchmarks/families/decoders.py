"""What do few bits cost two small decoders in perplexity, and what do they save?

``decoders.py [--model gemma|smollm2] [--tokens N] [--max-length L]``: Gemma-3-270M and SmolLM2-135M on WikiText-2's
test text; bf16, int8 row by row, LLM.int8(), and four bits by RTN, GPTQ, AWQ and HQQ in groups of 32 and 128. Passes
that need data get the valid text. A row is perplexity, bytes on disk and seconds to quantize; every row is written when
it is there, and the same command goes on behind the last one.

The text is read through windows that overlap by half, so perplexities compare with each other and not with papers that
read it otherwise. The reference are dequantized weights of about four bits: a four-bit row may come out as good.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "compression"))
from packaged import MODELS, Kept, gguf_of, text_of
from scipy import stats
from techniques import stored_bytes

import hasten
from hasten.passes import configs, run_pass
from hasten.pipeline.material import outputs_of
from hasten.records import Rejected
from hasten.tasks.language_modeling import perplexity

GROUPS = (32, 128)
BF16 = "bf16"
WAYS: list[tuple[str, dict[str, Any]]] = [
    ("rtn", {"bits": 8, "group": None}),
    ("llm_int8", {"rows": 16}),
    *((kind, {"bits": 4, "group": group}) for group in GROUPS for kind in ("rtn", "hqq")),
    *((kind, {"bits": 4, "group": group, "rows": 16}) for group in GROUPS for kind in ("gptq", "awq")),
    ("rtn", {"bits": 4, "group": 32, "symmetric": False}),
    *((kind, {"bits": 4, "group": 32, "symmetric": False, "rows": 16}) for kind in ("gptq", "awq")),
]
# Of English text by these tokenizers; only the slice's size depends on it.
_CHARACTERS_PER_TOKEN = 4


def main() -> None:
    options = read_options()
    settings = {"tokens": options.tokens, "max_length": options.max_length}
    kept = Kept("families/decoders", "perplexity, bytes and seconds of decoders in few bits", settings)
    for name in [options.model] if options.model else MODELS:
        with tempfile.TemporaryDirectory() as folder:
            measure(name, kept, Path(folder), tokens=options.tokens, max_length=options.max_length)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=sorted(MODELS), help="only this one")
    parser.add_argument("--tokens", type=int, help="about so many tokens of the test text instead of all")
    parser.add_argument("--max-length", type=int, default=512, help="tokens of a window")
    return parser.parse_args()


def measure(name: str, kept: Kept, folder: Path, *, tokens: int | None, max_length: int) -> None:
    """All rows of one model that are not there yet."""
    if all(kept.has(model=name, way=label) for label in ["dequantized", BF16, *(label_of(*way) for way in WAYS)]):
        return
    bench = workbench_of(name, folder, tokens=tokens, max_length=max_length)
    if not kept.has(model=name, way="dequantized"):
        kept.add({"model": name, "way": "dequantized", "from": MODELS[name][1], **figures(bench, bench.model())})
    if not kept.has(model=name, way=BF16):
        kept.add({"model": name, "way": BF16, **in_bf16(bench)})
    for kind, options in WAYS:
        label = label_of(kind, options)
        if kept.has(model=name, way=label):
            continue
        row: dict[str, Any] = {"model": name, "way": label, "kind": kind}
        started = time.perf_counter()
        try:
            model = run_pass(bench.model(), configs([kind])[kind](**options), bench.calibration())
        except Rejected as error:
            kept.add({**row, "rejected": str(error)})
            continue
        row |= {"quantize_s": round(time.perf_counter() - started, 1), **figures(bench, model)}
        whole = next(r for r in kept.rows if r["model"] == name and r["way"] == BF16)
        kept.add({**row, "above_bf16_percent": above(row["said"], whole["said"])})


def in_bf16(bench: Any) -> dict[str, Any]:
    """Every weight rounded to bf16, two bytes each; computed in fp32, so that the rows differ in weights alone."""
    model = bench.model()
    weights = list(model.parameters())
    for weight in weights:
        weight.data = weight.data.bfloat16().float()
    return {**figures(bench, model), "bytes": 2 * sum(weight.numel() for weight in weights)}


def label_of(kind: str, options: dict[str, Any]) -> str:
    return str(configs([kind])[kind](**options).label)


def workbench_of(name: str, folder: Path, *, tokens: int | None, max_length: int) -> Any:
    """The packaged model, the valid text to look at, the test text to report."""
    size = None if tokens is None else tokens * _CHARACTERS_PER_TOKEN
    valid = text_of("valid", characters=300_000)
    parts = {"calibration": valid[: len(valid) // 2], "selection": valid[len(valid) // 2 :]}
    parts["test"] = text_of("test", characters=size)
    for part, text in parts.items():
        (folder / f"{part}.txt").write_text(text, encoding="utf-8")
    return hasten.workbench(
        gguf_of(name, folder), task="language-modeling", max_length=max_length,
        **{f"{part}_data": str(folder / f"{part}.txt") for part in parts},
    )  # fmt: skip


def figures(bench: Any, model: Any) -> dict[str, Any]:
    """Perplexity on the test text, and what ``save_model`` writes."""
    prepared, started = bench.prepared, time.perf_counter()
    outputs = outputs_of(model, prepared.test, task=prepared.task, input_names=prepared.input_names)
    return {
        "perplexity": perplexity(outputs), "tokens": int(outputs[:, 1].sum()), "bytes": stored_bytes(model),
        "read_s": round(time.perf_counter() - started, 1),
        "said": [[round(float(sum_), 4), int(count)] for sum_, count in outputs[:, :2]],
    }  # fmt: skip


def above(said: list[list[float]], by_bf16: list[list[float]]) -> dict[str, float]:
    """How much higher the perplexity is, in per cent, with a 95 % interval over windows (both read the same ones)."""
    difference = np.array([own[0] - other[0] for own, other in zip(said, by_bf16, strict=True)])
    counts = np.array([count for _, count in said])

    def percent(sums: Any, tokens: Any, axis: int = 0) -> Any:
        return 100.0 * np.expm1(-sums.sum(axis=axis) / tokens.sum(axis=axis))

    estimate = float(percent(difference, counts))
    if len(counts) < 2 or np.ptp(difference) == 0:
        return {"estimate": estimate, "low": estimate, "high": estimate}
    found = stats.bootstrap(
        (difference, counts), percent, paired=True, vectorized=True, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return {"estimate": estimate, "low": float(found.low), "high": float(found.high)}


if __name__ == "__main__":
    main()
