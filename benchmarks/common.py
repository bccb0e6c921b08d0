"""What every benchmark shares: where results go, and the facts that make a figure mean something."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hasten.measure.host import describe_host, usable_cores

_FOLDERS = re.compile(r"(?:/[\w.-]+)+/")  # where files lay is nobody's business
RESULTS = Path(__file__).parent / "results"


def write(name: str, question: str, data: dict[str, Any]) -> Path:
    """One JSON file a benchmark: question, host, versions, commit, figures."""
    cores = usable_cores()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    facts = {
        "question": question,
        "commit": commit.stdout.strip(),
        "host": asdict(describe_host(cores=cores, threads=len(cores))),
        **data,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts, indent=1, default=str) + "\n")
    print(f"wrote {path}")
    return path


def verdict_facts(result: Any) -> dict[str, Any]:
    """The verdict without its long lists, and every trial's main figures."""
    verdict = result.to_dict()
    verdict["warnings"] = [_FOLDERS.sub("", warning) for warning in verdict["warnings"]]
    for long in ("flips", "folder", "bundle", "report", "next_command", "source", "host"):
        verdict.pop(long)
    trials = [
        {
            "label": t.label,
            "stage": t.stage,
            "status": t.status,
            "reason": t.reason,
            "p50_ms": t.figures.latency_ms and t.figures.latency_ms.p50,
            "p95_ms": t.figures.latency_ms and t.figures.latency_ms.p95,
            "speedup": t.speedup and asdict(t.speedup),
            "quality_drop_pt": t.quality_drop_pt and asdict(t.quality_drop_pt),
            "bytes": t.figures.bytes,
            "seconds": round(t.elapsed_s, 1),
        }
        for t in result.run.trials
    ]
    return {"verdict": verdict, "trials": trials}
