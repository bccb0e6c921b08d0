"""kill -9 at ten random moments of one run: does each resume, with no trial lost or repeated, to a valid bundle?"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import write

import hasten
from hasten.ledger import read_rows
from hasten.pipeline.demo import demo_material

KILLS = 10


def main() -> None:
    model, rows = demo_material()
    rng = random.Random(1)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out"
        program = str(Path(sys.executable).parent / "hasten")
        options = {
            "--task": "text-classification", "--data": str(rows), "--budget": "quality_drop<=5%", "--time": "15m",
            "--out": str(out), "--max-rows": "150", "--runtimes": "onnxruntime", "--techniques": "fp32,int8",
        }  # fmt: skip
        command = [program, "optimize", str(model), *(word for pair in options.items() for word in pair)]
        kills, kept = [], []
        for _ in range(KILLS):
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            moment = rng.uniform(3, 75)
            time.sleep(moment)
            process.send_signal(signal.SIGKILL)
            process.wait()
            trials = read_rows(out / "trials.jsonl").trials() if (out / "trials.jsonl").exists() else ()
            assert trials[: len(kept)] == tuple(kept), "a trial was lost or changed"
            kept = list(trials)
            kills.append(
                {"after_s": round(moment, 1), "trials_on_disk": len(trials), "bundle": (out / "bundle").is_dir()}
            )
            print(kills[-1], flush=True)
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        trials = read_rows(out / "trials.jsonl").trials()
        keys = [(t.recipe_id, t.stage) for t in trials if t.rejected_at != "time"]
        result = hasten.check(out / "bundle")
        write(
            "kill_resume",
            "ten kills at random moments, then the same command to the end",
            {
                "kills": kills, "exit_code": done.returncode, "trials": len(trials),
                "repeated": len(keys) - len(set(keys)), "lost": sum(t not in trials for t in kept),
                "bundle_valid": result.passed,
            },
        )  # fmt: skip


if __name__ == "__main__":
    main()
