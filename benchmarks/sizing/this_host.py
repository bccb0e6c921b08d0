"""How far are the predictions of ``hasten size --this-host`` from what runs here?

Calibrates on small random encoders of unpublished shapes, then times the shapes of published models (random weights: a
time does not depend on them) at several batches and lengths, in two precisions, each in a process of its own, and
compares times and memory.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import write

from hasten.measure.host import usable_cores
from hasten.pipeline.this_host import RUNTIMES, HostFit, measured_host, predictions, timed

# (layers, hidden, FFN, heads), vocabulary, (rows, tokens) of the requests.
MODELS = {
    "MiniLM-L6": ((6, 384, 1536, 12), 30522, ((1, 16), (1, 64), (1, 256), (4, 32))),
    "MiniLM-L12": ((12, 384, 1536, 12), 30522, ((1, 32), (1, 128))),
    "BERT-small": ((4, 512, 2048, 8), 30522, ((1, 32), (2, 128))),
    "DistilBERT": ((6, 768, 3072, 12), 30522, ((1, 64), (1, 128))),
    "BERT-base": ((12, 768, 3072, 12), 30522, ((1, 32), (1, 128), (4, 64))),
}


def main() -> None:
    fit = measured_host(again=True, tell=lambda what, done, of: print(f"{done} of {of}: {what}", flush=True))
    rows = [row for name in MODELS for precision in RUNTIMES for row in compared(fit, name, precision)]
    write(
        "sizing/this_host",
        "error of predicted latency and memory against >= 12 measured points after --this-host, median <= 20 %",
        {
            "fits": {name: {"error_left_out": f.error, "points": f.points} for name, f in fit.device.fits.items()},
            "points": len(rows), "latency_error": spread(rows, "ms"), "memory_error": spread(rows, "bytes"),
            "rows": rows,
        },
    )  # fmt: skip


def spread(rows: list[dict[str, Any]], what: str) -> dict[str, float]:
    """Median and worst of the absolute relative errors."""
    errors = [abs(r[f"predicted_{what}"] / r[f"measured_{what}"] - 1) for r in rows]
    print(what, f"median {statistics.median(errors):.1%}, worst {max(errors):.1%}")
    return {"median": statistics.median(errors), "worst": max(errors)}


def compared(fit: HostFit, name: str, precision: str) -> list[dict[str, Any]]:
    """Measured and predicted, request by request."""
    proportions, vocab, requests = MODELS[name]
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        points = timed(
            proportions, RUNTIMES[precision], precision=precision, folder=Path(scratch) / "made", cores=usable_cores(),
            requests=requests, vocab=vocab, alone=True,
        )  # fmt: skip
        for point in points:
            row = {
                "model": name, "precision": precision, "rows": point["rows"], "tokens": point["tokens"],
                "measured_ms": point["ms"], "measured_bytes": point["peak_rss_bytes"], **predictions(fit.device, point),
            }  # fmt: skip
            print(row, flush=True)
            found.append(row)
    return found


if __name__ == "__main__":
    main()
