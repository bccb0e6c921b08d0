"""A tiny random checkpoint and a file of rows for every task: what the whole loop can be tried with."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

from tiny_models import SIZES, SPECIAL, WORDS, save_tokenizer, seq2seq_config, shaken, tiny_config

TAGS = ("O", "B-time", "I-time", "B-place")
SIDE = 16
BANDS = 8
WRITERS = {"summarization": "t5", "translation": "marian"}
GENERATIVE = ("text-generation", "summarization", "translation", "speech-recognition")


def save_task_model(folder: Path, task: str, **sizes: int) -> Path:
    """A checkpoint with the task's head and its tokenizer or image settings; ``sizes`` are for models of images."""
    import torch

    torch.manual_seed(0)
    model = _model(task, sizes).eval()
    model.save_pretrained(folder)
    if task == "image-classification":
        settings = {
            "do_resize": True, "size": {"height": SIDE, "width": SIDE}, "resample": 2, "do_rescale": True,
            "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
            "image_processor_type": "ViTImageProcessor",
        }  # fmt: skip
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    else:
        save_tokenizer(folder)
    if task == "speech-recognition":
        from transformers import WhisperFeatureExtractor

        WhisperFeatureExtractor(feature_size=BANDS, chunk_length=1).save_pretrained(folder)
    return folder


def _model(task: str, sizes: dict[str, int]) -> Any:
    import transformers as t

    named = {"id2label": dict(enumerate(TAGS)), "label2id": {name: i for i, name in enumerate(TAGS)}}
    if task == "token-classification":
        return t.BertForTokenClassification(t.BertConfig(**_bert(), **named))
    if task == "question-answering":
        return t.BertForQuestionAnswering(t.BertConfig(**_bert()))
    if task == "text-regression":
        return t.BertForSequenceClassification(t.BertConfig(**_bert(), num_labels=1))
    if task == "feature-extraction":
        return t.BertModel(t.BertConfig(**_bert()))
    if task == "text-classification":
        return t.BertForSequenceClassification(tiny_config("bert"))
    if task == "image-classification":
        named = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
        config = t.ViTConfig(**{**SIZES, **sizes}, **named, image_size=SIDE, patch_size=4)
        return t.ViTForImageClassification(config)
    if task in ("summarization", "translation"):
        return shaken(t.AutoModelForSeq2SeqLM.from_config(seq2seq_config(WRITERS[task])))
    if task == "speech-recognition":
        return shaken(t.WhisperForConditionalGeneration(_whisper()))
    ids = {"bos_token_id": 4, "eos_token_id": 5} if task == "text-generation" else {}
    config = t.GPT2Config(vocab_size=len(SPECIAL) + len(WORDS), n_positions=64, n_embd=32, n_layer=2, n_head=4, **ids)
    return shaken(t.GPT2LMHeadModel(config)) if task == "text-generation" else t.GPT2LMHeadModel(config)


def _whisper() -> Any:
    """It hears one second: 100 frames, halved by its convolutions."""
    import transformers as t

    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    ids = {"pad_token_id": 1, "bos_token_id": 4, "eos_token_id": 5, "decoder_start_token_id": 4}
    return t.WhisperConfig(
        vocab_size=len(SPECIAL) + len(WORDS), num_mel_bins=BANDS, max_source_positions=50, max_target_positions=40,
        **sizes, **heads, **ids,
    )  # fmt: skip


def _bert() -> dict[str, Any]:
    return {
        **SIZES,
        "vocab_size": len(SPECIAL) + len(WORDS),
        "max_position_embeddings": 66,
        "pad_token_id": 1,
        "num_hidden_layers": 2,
    }


def save_task_rows(folder: Path, task: str, *, count: int = 160) -> Path:
    """Rows with right answers drawn at random: nothing is learnt from them, everything is read, run and scored."""
    rng = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    if task == "image-classification":
        return _images(folder, count=count, rng=rng)
    if task == "speech-recognition":
        return _recordings(folder, count=count // 2, rng=rng)
    rows = [_row(task, rng) for _ in range(count)]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _row(task: str, rng: random.Random) -> dict[str, Any]:
    words = rng.choices(WORDS, k=rng.randint(3, 20))
    if task == "token-classification":
        return {"tokens": words, "tags": rng.choices(TAGS, k=len(words))}
    if task == "question-answering":
        context = rng.choices(WORDS, k=rng.randint(60, 90))
        at = rng.randrange(len(context))
        start = len(" ".join(context[:at])) + (at > 0)
        return {
            "question": " ".join(words[:5]),
            "context": " ".join(context),
            "answers": {"text": [context[at]], "answer_start": [start]},
        }
    if task == "text-regression":
        return {"sentence1": " ".join(words), "sentence2": " ".join(words[::-1]), "score": rng.random() * 5}
    if task == "multiple-choice":
        choices = [" ".join(rng.choices(WORDS, k=4)) for _ in range(rng.choice((2, 3)))]
        return {"goal": " ".join(words), "choices": choices, "label": rng.randrange(2)}
    if task == "text-classification":
        return {"text": " ".join(words), "label": rng.choice(("no", "yes", "maybe"))}
    if task == "text-generation":
        return {"prompt": " ".join(words), "completion": " ".join(words[:4])}
    if task == "summarization":
        return {"document": " ".join(words * 2), "summary": " ".join(words[:5])}
    if task == "translation":
        return {"translation": {"en": " ".join(words), "xx": " ".join(words[::-1])}}
    return {"text": " ".join(words)}


def _recordings(folder: Path, *, count: int, rng: random.Random) -> Path:
    """Half a second of noise each, in a folder with a table."""
    import numpy as np
    import soundfile

    draw = np.random.default_rng(0)
    (folder / "sounds").mkdir()
    lines = ["file_name,text"]
    for number in range(count):
        samples = draw.standard_normal(8000).astype(np.float32) * 0.1
        soundfile.write(folder / "sounds" / f"{number}.wav", samples, 16000)
        lines.append(f"{number}.wav,{' '.join(rng.choices(WORDS, k=4))}")
    (folder / "sounds" / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder / "sounds"


def _images(folder: Path, *, count: int, rng: random.Random) -> Path:
    from PIL import Image

    for number in range(count):
        label = ("no", "yes")[number % 2]
        (folder / "images" / label).mkdir(parents=True, exist_ok=True)
        pixels = bytes(rng.randrange(256) for _ in range(3 * 20 * 24))
        held = io.BytesIO()
        Image.frombytes("RGB", (20, 24), pixels).save(held, "PNG")
        (folder / "images" / label / f"{number}.png").write_bytes(held.getvalue())
    return folder / "images"
