"""BERT-base shape (random weights), batch 1, 128 tokens: is the choice >= 3.5x faster than eager fp32?

Random weights say nothing about quality, so the budget bounds none; parity with eager is checked all the same.
"""

from __future__ import annotations

import csv
import random
import tempfile
from pathlib import Path

from common import verdict_facts, write

import hasten
from hasten.pipeline.demo import encoder_folder
from hasten.pipeline.progress import Lines

TOKENS = 128
ROWS = 150


def save_model(folder: Path) -> None:
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig(num_labels=2)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(encoder_folder()).save_pretrained(folder)


def save_rows(path: Path) -> None:
    """One-token words, so that every row has exactly 128 tokens with [CLS] and [SEP]."""
    rng = random.Random(0)
    words = [
        "good",
        "bad",
        "film",
        "story",
        "time",
        "music",
        "actor",
        "scene",
        "long",
        "short",
        "plot",
        "house",
        "water",
        "light",
    ]
    rows = [(" ".join(rng.choices(words, k=TOKENS - 2)), rng.choice(["LABEL_0", "LABEL_1"])) for _ in range(ROWS)]
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([("text", "label"), *rows])


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        save_model(folder / "model")
        save_rows(folder / "rows.csv")
        result = hasten.optimize(
            folder / "model", task="text-classification", data=folder / "rows.csv", budget="", time="6m",
            out=folder / "out", max_rows=50, reporter=Lines(print),
        )  # fmt: skip
        write(
            "bert_base_shape",
            "BERT-base shape, 128 tokens, batch 1: >= 3.5x faster than eager fp32",
            verdict_facts(result),
        )


if __name__ == "__main__":
    main()
