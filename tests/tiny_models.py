"""Tiny random checkpoints of every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SPECIAL = ["<s>", "[PAD]", "</s>", "[UNK]", "[CLS]", "[SEP]"]
WORDS = [f"w{i}" for i in range(60)]
SIZES = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 4, "intermediate_size": 64}


def tiny_config(family: str, **changes: Any) -> Any:
    import transformers as t

    shared = {"vocab_size": len(SPECIAL) + len(WORDS), "max_position_embeddings": 66, "pad_token_id": 1}
    names = {"id2label": {0: "no", 1: "yes", 2: "maybe"}, "label2id": {"no": 0, "yes": 1, "maybe": 2}}
    if family == "distilbert":
        return t.DistilBertConfig(**shared, **names, dim=32, n_heads=4, n_layers=4, hidden_dim=64, **changes)
    kinds = {
        "bert": t.BertConfig,
        "roberta": t.RobertaConfig,
        "xlm-roberta": t.XLMRobertaConfig,
        "electra": t.ElectraConfig,
    }
    extra = {"embedding_size": 16} if family == "electra" else {}
    return kinds[family](**shared, **names, **SIZES, **extra, **changes)


def save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 4), ("[SEP]", 5)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)


def save_classifier(folder: Path, family: str = "bert") -> Path:
    """A random three-label classifier with its tokenizer."""
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(tiny_config(family)).eval()
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder
