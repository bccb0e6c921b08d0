"""Tiny decoders with a byte-level tokenizer, saved as other programs expect them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

MERGES = [("t", "h"), ("Ġ", "th"), ("Ġth", "e")]
TOKENS = ["<|end|>", *"abcdefghijklmnopqrstuvwxyz", "Ġ", "th", "Ġth", "Ġthe"]
ROWS = 66
SETTINGS: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": False, "mlp_bias": False},
    "qwen2": {"use_sliding_window": False, "layer_types": None},
    "qwen3": {"head_dim": 128},  # transformers reads no other width of a head from a GGUF file
    "gemma3_text": {
        "sliding_window": 4, "num_hidden_layers": 6, "layer_types": None, "query_pre_attn_scalar": 256, "head_dim": 256,
    },
    "gpt2": {"n_inner": None, "n_positions": 1024},
    "mixtral": {},
}  # fmt: skip


def tiny(family: str, **changes: Any) -> Any:
    """A random decoder as transformers has it: GPT-2 with its own matrices, experts in stacks."""
    import torch
    from tiny_models import language_config, shaken
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    ids = {"vocab_size": ROWS, "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 0}
    config = language_config(family, **{**ids, **SETTINGS[family], **changes})
    return shaken(AutoModelForCausalLM.from_config(config).eval())


def saved(model: Any, folder: Path) -> Path:
    """With its tokenizer."""
    model.save_pretrained(folder)
    save_words(folder)
    return folder


def save_words(folder: Path) -> None:
    """Byte-level BPE over small letters; there are fewer tokens than rows."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: number for number, token in enumerate(TOKENS)}
    tokenizer = Tokenizer(models.BPE(vocabulary, MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|end|>"
    ).save_pretrained(folder)  # fmt: skip


def words(folder: Path) -> dict[str, bytes]:
    """The tokenizer's files."""
    save_words(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def logits(model: Any) -> Any:
    import torch

    with torch.inference_mode():
        return model(input_ids=torch.tensor([[3, 9, 20, 7, 31, 15]])).logits
