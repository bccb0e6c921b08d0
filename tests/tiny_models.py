"""Tiny random checkpoints of every family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SPECIAL = ["<s>", "[PAD]", "</s>", "[UNK]", "[CLS]", "[SEP]"]
WORDS = [f"w{i}" for i in range(60)]
TEXTS = ("bert", "roberta", "xlm-roberta", "distilbert", "electra")
IMAGES = ("vit", "deit", "dinov2")
SIDE, PATCH = 16, 4
FRAMES, BANDS = 24, 8
SIZES = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 4, "intermediate_size": 64}


def tiny_config(family: str, **changes: Any) -> Any:
    import transformers as t

    shared = {"vocab_size": len(SPECIAL) + len(WORDS), "max_position_embeddings": 66, "pad_token_id": 1}
    names = {"id2label": {0: "no", 1: "yes", 2: "maybe"}, "label2id": {"no": 0, "yes": 1, "maybe": 2}}
    if family in IMAGES:
        return image_config(family, **names, **changes)
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


def image_config(family: str, **changes: Any) -> Any:
    """16 patches of a 16 x 16 image."""
    import transformers as t

    kinds = {"vit": t.ViTConfig, "deit": t.DeiTConfig, "dinov2": t.Dinov2Config}
    sizes = {**SIZES, "image_size": SIDE, "patch_size": PATCH}
    if family == "dinov2":
        sizes["mlp_ratio"] = sizes.pop("intermediate_size") // sizes["hidden_size"]
    if family == "deit":  # it has a second class with a head: which one is meant has to be said
        sizes["architectures"] = ["DeiTForImageClassification"]
    return kinds[family](**{**sizes, **changes})


def save_image_settings(folder: Path, **changes: Any) -> None:
    """What a ViT of these sizes does to an image."""
    side = {"height": SIDE, "width": SIDE}
    settings = {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": side, "resample": 2,
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.5, 0.25, 0.3],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps({**settings, **changes}))


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
    """A random three-label classifier with its tokenizer or image settings."""
    import torch
    from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

    torch.manual_seed(0)
    loader = AutoModelForImageClassification if family in IMAGES else AutoModelForSequenceClassification
    loader.from_config(tiny_config(family)).eval().save_pretrained(folder)
    (save_image_settings if family in IMAGES else save_tokenizer)(folder)
    return folder


# Three layers each, so that one can go from the middle; a decoder beside an encoder has two.
DECODERS = (
    "gpt2", "llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text", "mixtral", "qwen2_moe", "qwen3_moe",
)  # fmt: skip
SEQ2SEQ = ("t5", "flan-t5", "bart", "marian")
_WINDOWS = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


def language_config(family: str, **changes: Any) -> Any:
    """A decoder with 4 heads of 8 (2 key/value heads where heads share them) and 48 neurons."""
    import transformers as t

    ids = {"pad_token_id": 1, "bos_token_id": 4, "eos_token_id": 5}
    shared = {"vocab_size": len(SPECIAL) + len(WORDS), "max_position_embeddings": 66, **ids, **SIZES}
    shared |= {"num_hidden_layers": 3, "intermediate_size": 48, "num_key_value_heads": 2}
    gemma = {"head_dim": 8, "query_pre_attn_scalar": 8, **_WINDOWS}
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "llama": (t.LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
        "mistral": (t.MistralConfig, {}),
        "qwen2": (t.Qwen2Config, {"use_sliding_window": True, **_WINDOWS}),
        "qwen3": (t.Qwen3Config, {"head_dim": 8}),
        "phi3": (t.Phi3Config, {"original_max_position_embeddings": 66}),
        "gemma2": (t.Gemma2Config, gemma),
        "gemma3_text": (t.Gemma3TextConfig, gemma),
        "mixtral": (t.MixtralConfig, {"num_local_experts": 4, "num_experts_per_tok": 2}),
        "qwen2_moe": (
            t.Qwen2MoeConfig, {**_EXPERTS, "shared_expert_intermediate_size": 40, "mlp_only_layers": [1]}
        ),
        "qwen3_moe": (t.Qwen3MoeConfig, {**_EXPERTS, "mlp_only_layers": [0]}),
    }  # fmt: skip
    if family == "gpt2":
        sizes = {"n_embd": 32, "n_head": 4, "n_layer": 3, "n_inner": 48, "n_positions": 66}
        return t.GPT2Config(**{"vocab_size": shared["vocab_size"], **sizes, **ids, **changes})
    kind, own = kinds[family]
    return kind(**{**shared, **own, **changes})


def seq2seq_config(family: str, **changes: Any) -> Any:
    """Three encoder and two decoder layers of 4 heads of 8 and 48 neurons."""
    import transformers as t

    shared = {"vocab_size": len(SPECIAL) + len(WORDS), "d_model": 32, "pad_token_id": 1, "eos_token_id": 5}
    shared |= {"decoder_start_token_id": 1}
    if family in ("t5", "flan-t5"):
        own = {"d_kv": 8, "d_ff": 48, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4}
        own |= {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 20}
        gate = {"feed_forward_proj": "gated-gelu"} if family == "flan-t5" else {}
        return t.T5Config(**{**shared, **own, **gate, **changes})
    own = {"encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    own |= {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 66, "forced_eos_token_id": None}
    kind = {"bart": t.BartConfig, "marian": t.MarianConfig}[family]
    return kind(**{**shared, **own, "scale_embedding": True, **changes})


def language_model(family: str, *, seed: int = 0, **changes: Any) -> Any:
    """A random model with a text head, prepared for adapters; every weight differs from its usual start."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    from hasten.models.reshape import prepared

    torch.manual_seed(seed)
    seq2seq = family in SEQ2SEQ
    config = (seq2seq_config if seq2seq else language_config)(family, **changes)
    model = (AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM).from_config(config).eval()
    return prepared(shaken(model))


def whisper(**changes: Any) -> Any:
    """One of speech, which hears so many frames: two encoder layers of 4 heads, three decoder layers of 2."""
    import torch
    import transformers as t

    torch.manual_seed(0)
    layers = {"encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4, "decoder_attention_heads": 2}
    sizes = {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "d_model": 32, "vocab_size": 66, "num_mel_bins": BANDS}
    places = {"max_source_positions": FRAMES // 2, "max_target_positions": 40}
    ids = {"pad_token_id": 1, "bos_token_id": 4, "eos_token_id": 5, "decoder_start_token_id": 4}
    never = {"suppress_tokens": None, "begin_suppress_tokens": None}
    config = t.WhisperConfig(**{**layers, **sizes, **places, **ids, **never, **changes})
    return shaken(t.WhisperForConditionalGeneration(config).eval())


def shaken(model: Any, *, size: float = 0.1) -> Any:
    """With noise on every learnt weight: factors of norms are no longer ones, and biases no zeros."""
    import torch

    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * size)
    return model
