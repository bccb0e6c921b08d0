"""Heads for a real encoder, taught here: the checkpoints that the other benchmarks of this folder start from.

``slots`` is MiniLM (the encoder of the Banking77 classifier) taught Restaurant8k's slots, ``spans`` the same taught to
answer questions on a part of XQuAD. Both are trained with hasten's own loop on the rows of the calibration split.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "compression"))
from banking import MODEL, SHARED

import hasten
from hasten.passes import DistillConfig, distill

SLOTS = ("date", "first_name", "last_name", "people", "time")
TAGS = ("O", *(f"{kind}-{slot}" for slot in SLOTS for kind in ("B", "I")))


def slots(folder: Path, *, epochs: float) -> Path:
    """MiniLM with a tag for every word, taught; the checkpoint's folder."""
    from transformers import BertForTokenClassification

    names = dict(enumerate(TAGS))
    model = BertForTokenClassification.from_pretrained(
        MODEL, id2label=names, label2id={v: k for k, v in names.items()}, ignore_mismatched_sizes=True
    )
    data = SHARED / "data" / "restaurant8k"
    start = _saved(model, folder / "start")
    splits = halves(data / "test.json", folder)
    return taught(
        start, folder / "slots", task="token-classification", epochs=epochs, lr=3e-4,
        calibration_data=str(data / "train_0.json"), selection_data=str(splits[0]), test_data=str(splits[1]),
    )  # fmt: skip


def spans(folder: Path, *, epochs: float) -> tuple[Path, list[Path]]:
    """MiniLM that answers from a context, taught on two thirds of the questions; the folder and the three splits."""
    from transformers import BertForQuestionAnswering

    model = BertForQuestionAnswering.from_pretrained(MODEL, num_labels=2)
    splits = by_article(SHARED / "data" / "xquad" / "xquad.en.json", folder)
    names = ("calibration_data", "selection_data", "test_data")
    made = taught(
        _saved(model, folder / "start"), folder / "spans", task="question-answering", epochs=epochs, lr=3e-4,
        max_length=384, **dict(zip(names, map(str, splits), strict=True)),
    )  # fmt: skip
    return made, splits


def taught(start: Path, out: Path, *, task: str, epochs: float, lr: float, **data: Any) -> Path:
    """The checkpoint in ``start`` trained on its labels alone, saved as ``out``."""
    bench = hasten.workbench(start, task=task, **data)
    config = DistillConfig(epochs=epochs, lr=lr, logits=0.0, hidden=0.0, labels=1.0, patience=100)
    model = distill(bench.model(), config, bench.calibration())
    print(f"{task}: {bench.score(model)}", flush=True)
    return bench.save(model, out)


def _saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    for path in MODEL.iterdir():
        if path.name.startswith(("tokenizer", "vocab", "special")):
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def halves(path: Path, folder: Path) -> list[Path]:
    """The file's rows, every other one, in two files."""
    rows = json.loads(path.read_text())
    made = []
    for number in (0, 1):
        made.append(folder / f"half{number}.json")
        made[-1].write_text(json.dumps(rows[number::2]))
    return made


def by_article(path: Path, folder: Path) -> list[Path]:
    """Two thirds of the articles to learn from, a sixth each to select and to test: no paragraph is in two of them."""
    whole = json.loads(path.read_text())
    made = []
    for name, wanted in (("train", (0, 1, 2, 3)), ("selection", (4,)), ("test", (5,))):
        made.append(folder / f"{name}.json")
        kept = [article for number, article in enumerate(whole["data"]) if number % 6 in wanted]
        made[-1].write_text(json.dumps({**whole, "data": kept}))
    return made
