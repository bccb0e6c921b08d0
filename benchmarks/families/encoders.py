"""Pictures, slots and answers through the same command: how much faster at which loss?

``encoders.py fashion`` (or ``slots``, ``spans``; none: all three). A ViT on Fashion-MNIST (>= 3x at <= 0.5 pt), MiniLM
taught Restaurant8k's slots (entity F1 before and after), MiniLM taught to answer on a part of XQuAD (F1 before and
after). Each is one ``hasten optimize`` from the command line.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "compression"))
from banking import SHARED, require_material
from common import verdict_facts, write
from fine_tune import halves, slots, spans

from hasten.pipeline.result import open_result


def fashion(folder: Path) -> dict[str, Any]:
    """The ViT as it was given."""
    data = SHARED / "data" / "fashion-mnist"
    return optimized(
        SHARED / "models" / "vit-fashion", folder, task="image-classification", budget="quality_drop<=0.5pt", time="8m",
        data=["--data", str(data / "t10k-images-idx3-ubyte.gz")],
    )  # fmt: skip


def restaurant(folder: Path) -> dict[str, Any]:
    """MiniLM for slots."""
    model = slots(folder, epochs=3)
    half = halves(SHARED / "data" / "restaurant8k" / "test.json", folder)
    train = SHARED / "data" / "restaurant8k" / "train_0.json"
    return optimized(model, folder, task="token-classification", budget="quality_drop<=1pt", time="6m", data=three(
        train, *half))  # fmt: skip


def answers(folder: Path) -> dict[str, Any]:
    """MiniLM for answers."""
    model, splits = spans(folder, epochs=8)
    return optimized(
        model, folder, task="question-answering", budget="quality_drop<=2pt", time="8m",
        data=[*three(*splits), "--max-length", "384"],
    )  # fmt: skip


QUESTIONS = {
    "fashion": ("ViT on Fashion-MNIST: >= 3x faster than eager at <= 0.5 pt of top-1?", fashion),
    "slots": ("MiniLM on Restaurant8k: entity F1 before and after", restaurant),
    "spans": ("MiniLM on a part of XQuAD: F1 before and after", answers),
}


def main(*asked: str) -> None:
    require_material()
    for name in asked or QUESTIONS:
        question, measure = QUESTIONS[name]
        with tempfile.TemporaryDirectory() as scratch:
            write(f"families/{name}", question, measure(Path(scratch)))


def three(calibration: Path, selection: Path, test: Path) -> list[str]:
    return [
        "--calibration-data", str(calibration), "--selection-data", str(selection), "--test-data", str(test),
    ]  # fmt: skip


def optimized(
    model: Path, folder: Path, *, task: str, budget: str, time: str, data: list[str]
) -> dict[str, Any]:  # fmt: skip
    """The command line as a user types it, and what came of it."""
    out = folder / "out"
    command = [str(Path(sys.executable).parent / "hasten"), "optimize", str(model), "--task", task, *data]
    subprocess.run([*command, "--budget", budget, "--time", time, "--out", str(out)], check=False)
    return verdict_facts(open_result(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
