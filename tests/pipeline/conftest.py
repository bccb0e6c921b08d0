"""A tiny random classifier with rows, saved once for the whole run."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from hasten.pipeline import final, timing

os.environ.setdefault("OMP_NUM_THREADS", "1")

WORDS = [f"w{i}" for i in range(60)]


def save_tiny_classifier(folder: Path, *, layers: int = 3) -> Path:
    """A BERT of 32 dimensions whose label depends on its input, with a word-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    torch.manual_seed(0)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=layers, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64, id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1},
    )  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():  # a random head hardly moves; make its logits differ from row to row
        model.classifier.weight.mul_(40)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    return folder


def save_rows(path: Path, model: Path, *, count: int = 240) -> Path:
    """Rows labelled by the model itself, with a tenth of the labels turned: accuracy is about 90 %.

    The model's bias is first moved so that half of the rows get each label.
    """
    import random

    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(2, 30))) for _ in range(count)]
    network = AutoModelForSequenceClassification.from_pretrained(model).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    with torch.inference_mode():
        logits = torch.cat([network(**tokenizer(t, return_tensors="pt")).logits for t in texts])
    margins = logits[:, 1] - logits[:, 0]
    with torch.no_grad():
        network.classifier.bias[1] -= margins.median()
    network.save_pretrained(model)
    labels = [int(x > 0) for x in margins - margins.median()]
    labels = [1 - x if rng.random() < 0.1 else x for x in labels]
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([("text", "label"), *zip(texts, [("no", "yes")[x] for x in labels], strict=True)])
    return path


@pytest.fixture
def short_duels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Duels of about a second in fewer fresh processes, for whole runs that are looked at for what they do and leave
    behind. Runs whose times count keep them as they are (tests/pipeline/test_optimize.py)."""
    for stage, rounds in (("screen", 1), ("contest", 1), ("final", 2)):
        monkeypatch.setitem(timing.TIMINGS, stage, timing.Timing(rounds, 1.0))
    monkeypatch.setattr(timing, "_PAUSE_S", 0.5)
    for name in ("_THROUGHPUT_S", "_ENERGY_S"):
        monkeypatch.setattr(final, name, 0.3)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(checkpoint folder, csv)."""
    folder = tmp_path_factory.mktemp("tiny")
    model = save_tiny_classifier(folder / "model")
    return model, save_rows(folder / "rows.csv", model)
