"""Banking77, the whole job from the command line: how much faster than numbers and runtime alone, at 1 and at 3 points?

``banking77.py 40m`` runs ``hasten optimize`` without smaller shapes, then with them (quality_drop<=1pt and <=3pt), and
lets the bundles meet in duels. ``banking77.py 40m 3pt`` asks at three points alone; each bound has a file of its own.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from banking import MODEL, require_material, save, split_rows
from common import verdict_facts, write

import hasten
from hasten.pipeline.result import open_result

PLAIN = "fp32,int8"
QUESTIONS = {
    "1pt": ">= 2x faster than numbers and runtime alone at <= 1 pt, and >= 13x faster than eager",
    "3pt": ">= 3x faster than numbers and runtime alone at <= 3 pt",
}


def main(time: str = "40m", *drops: str) -> None:
    require_material()
    with tempfile.TemporaryDirectory() as scratch:
        files = [save(Path(scratch) / f"{name}.csv", rows) for name, rows in split_rows().items()]
        plain = optimize(Path(scratch) / "plain", files, budget="quality_drop<=1pt", time="6m", techniques=PLAIN)
        for drop in drops or QUESTIONS:
            result = optimize(Path(scratch) / drop, files, budget=f"quality_drop<={drop}", time=time)
            found: dict[str, Any] = {"plain": verdict_facts(plain), "time": time, **verdict_facts(result)}
            if plain.bundle and result.bundle:
                duel = hasten.bench(plain.bundle, vs=result.bundle, data=files[2], rounds=5, requests=1500)
                facts = duel.to_dict()
                facts["a"]["name"], facts["b"]["name"] = "plain", drop  # and not the folders of this machine
                found["duel_against_plain"] = facts
            write(f"compression/banking77_{drop}", QUESTIONS[drop], found)  # after each: no hour is lost with the next


def optimize(out: Path, files: Sequence[Path], *, budget: str, time: str, techniques: str | None = None) -> Any:
    """The command line as a user types it."""
    command = [
        str(Path(sys.executable).parent / "hasten"), "optimize", str(MODEL), "--task", "text-classification",
        "--calibration-data", str(files[0]), "--selection-data", str(files[1]), "--test-data", str(files[2]),
        "--budget", budget, "--time", time, "--out", str(out),
    ]  # fmt: skip
    subprocess.run([*command, *(["--techniques", techniques] if techniques else [])], check=False)
    return open_result(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
