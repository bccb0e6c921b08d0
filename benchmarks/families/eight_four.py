"""Four-bit weights with eight-bit inputs (8da4w): how much perplexity does training on the grid win back?

``eight_four.py [--model smollm2|gemma] [--tokens N] [--epochs E]``: what ExecuTorch's ``int4`` computes, weights in
groups of 32 and inputs rounded token by token, on WikiText-2's test text: rounded as they are, and after QAT (a
distillation from the model itself) on the valid text. The perplexities compare with those of ``decoders.py``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from decoders import above, workbench_of
from packaged import MODELS, Kept

from hasten.passes import QatConfig, train_quantized
from hasten.passes.fake_quant import fake_quantized
from hasten.passes.matrices import encoder_matrices
from hasten.pipeline.material import outputs_of
from hasten.tasks.language_modeling import perplexity

GROUP = 32
BATCH = 4  # windows of a step: as many as there is memory for, and enough steps in an epoch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=sorted(MODELS), default="smollm2")
    parser.add_argument("--tokens", type=int, default=10_000, help="about so many tokens of the test text")
    parser.add_argument("--max-length", type=int, default=256, help="tokens of a window")
    parser.add_argument("--epochs", type=float, default=1.0, help="of the valid text's first half")
    parser.add_argument("--lr", type=float, default=2e-5)
    options = parser.parse_args()
    kept = Kept("families/eight_four", "4-bit weights, 8-bit inputs: perplexity before and after QAT", vars(options))
    with tempfile.TemporaryDirectory() as folder:
        bench = workbench_of(options.model, Path(folder), tokens=options.tokens, max_length=options.max_length)
        for way in ("dequantized", "8da4w", "8da4w after QAT"):
            if not kept.has(way=way):
                row = measured(bench, way, epochs=options.epochs, lr=options.lr)
                whole = kept.rows[0] if kept.rows else row
                kept.add({"way": way, **row, "above_percent": above(row["said"], whole["said"])})


def measured(bench: Any, way: str, *, epochs: float, lr: float) -> dict[str, Any]:
    """One row: perplexity on the test text, and how long the training took."""
    model, started = bench.model(), time.perf_counter()
    config = QatConfig(bits=4, group=GROUP, activations="token", epochs=epochs, batch=BATCH, lr=lr)
    if way.endswith("QAT"):
        model = train_quantized(model, config, bench.calibration())
    seconds = round(time.perf_counter() - started, 1)
    if way == "dequantized":
        return {**read(bench, model), "training_s": 0.0}
    linears = [matrix.linear for matrix in encoder_matrices(model, what="rounding")]
    with fake_quantized(linears, bits=4, group=GROUP, per="token"):
        return {**read(bench, model), "training_s": seconds}


def read(bench: Any, model: Any) -> dict[str, Any]:
    prepared = bench.prepared
    outputs = outputs_of(model, prepared.test, task=prepared.task, input_names=prepared.input_names)
    said = [[round(float(sum_), 4), int(count)] for sum_, count in outputs[:, :2]]
    return {"perplexity": perplexity(outputs), "tokens": int(outputs[:, 1].sum()), "said": said}


if __name__ == "__main__":
    main()
