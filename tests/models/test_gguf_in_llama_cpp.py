"""GGUF files that hasten writes, opened by llama.cpp: the same tokens of a text, the same odds of the next one."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from interchange_models import tiny, words

from hasten.models.interchange.gguf_writer import write_gguf

pytest.importorskip("gguf", reason="no gguf package: pip install 'hasten[gguf]'")
xllamacpp = pytest.importorskip("xllamacpp", reason="no llama.cpp to ask: pip install xllamacpp")

FAMILIES = ("llama", "qwen2", "qwen3", "gemma3_text", "gpt2")
PROMPTS = ("the the cat", "a", "some other words that are longer than a window")
ASKED = 8
# llama.cpp keeps keys and values in fp16 and sums in another order.
BOUND = 0.02


def opened(path: Path) -> Any:
    settings = xllamacpp.CommonParams()
    settings.model.path = str(path)
    settings.n_ctx, settings.n_parallel, settings.warmup = 256, 1, False
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    return xllamacpp.Server(settings)


def tokens(server: Any, text: str) -> list[int]:
    request = urllib.request.Request(
        f"{server.listening_address}/tokenize", json.dumps({"content": text}).encode(),
        {"Content-Type": "application/json"},
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=30) as answer:
        return list(json.load(answer)["tokens"])


def odds(server: Any, ids: list[int]) -> dict[int, float]:
    """Log-probabilities of the likeliest next tokens."""
    found = server.handle_completions(
        {"prompt": ids, "max_tokens": 1, "n_probs": ASKED, "temperature": 0.0, "cache_prompt": False}
    )
    first = found["choices"][0]["logprobs"]["content"][0]
    return {int(one["id"]): float(one["logprob"]) for one in first["top_logprobs"]}


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_reads_the_same_model(family: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    model, files = tiny(family), words(tmp_path)
    path = tmp_path / "tiny.gguf"
    write_gguf(model, files, path, kind="f32", name="tiny")
    server, tokenizer = opened(path), Tokenizer.from_str(files["tokenizer.json"].decode())
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt).ids
        assert tokens(server, prompt) == ids
        with torch.inference_mode():
            expected = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        found = odds(server, ids)
        assert len(found) == ASKED
        assert max(abs(expected[one].item() - odd) for one, odd in found.items()) < BOUND
        assert expected.topk(ASKED).values[-1].item() <= min(found.values()) + BOUND
