"""Banking77, the whole job from the command line: how much faster than numbers and runtime alone, at 1 and at 3 points?

``banking77.py 40m`` runs ``hasten optimize`` without smaller shapes, then with them (quality_drop<=1pt and <=3pt; the
time of the latter may be given as well), and lets the bundles meet in duels.
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


def main(time: str = "40m", three_points_time: str | None = None) -> None:
    require_material()
    with tempfile.TemporaryDirectory() as scratch:
        files = [save(Path(scratch) / f"{name}.csv", rows) for name, rows in split_rows().items()]
        plain = optimize(Path(scratch) / "plain", files, budget="quality_drop<=1pt", time="6m", techniques=PLAIN)
        found: dict[str, Any] = {"plain": verdict_facts(plain)}
        asked = {"one_point": ("1pt", time), "three_points": ("3pt", three_points_time or time)}
        for name, (drop, limit) in asked.items():
            result = optimize(Path(scratch) / name, files, budget=f"quality_drop<={drop}", time=limit)
            found[name] = {"time": limit, **verdict_facts(result)}
            if plain.bundle and result.bundle:
                duel = hasten.bench(plain.bundle, vs=result.bundle, data=files[2], rounds=5, requests=1500)
                facts = duel.to_dict()
                facts["a"]["name"], facts["b"]["name"] = "plain", name  # and not the folders of this machine
                found[name]["duel_against_plain"] = facts
            # After each: an hour's work is not lost with the next.
            write(
                "compression/banking77",
                ">= 2x faster than numbers and runtime alone at <= 1 pt (>= 13x eager), >= 3x at <= 3 pt",
                found,
            )


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
    main(*sys.argv[1:3])
