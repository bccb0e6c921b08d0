"""GGUF files that hasten writes, read back: the same logits within the type's error, the same tokens, and refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interchange_models import logits, tiny, words

pytest.importorskip("gguf", reason="no gguf package: pip install 'hasten[gguf]'")

import gguf

from hasten.models.gguf import load_gguf
from hasten.models.interchange.gguf_vocabulary import vocabulary_of
from hasten.models.interchange.gguf_writer import grid_blocks, stored_as, write_gguf
from hasten.passes.grid import GridSpec, fitted
from hasten.passes.hqq import half_quadratic
from hasten.records import InputError

FAMILIES = ("llama", "qwen2", "qwen3", "gemma3_text", "gpt2")


def written(model: Any, folder: Path, *, kind: str = "f32", files: dict[str, bytes] | None = None) -> Path:
    (folder / "words").mkdir(parents=True, exist_ok=True)
    write_gguf(model, files or words(folder / "words"), folder / "tiny.gguf", kind=kind, name="tiny")
    return folder / "tiny.gguf"


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_read_back_says_what_the_model_said(family: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    model = tiny(family)
    found, files = load_gguf(written(model, tmp_path))
    assert found.config.model_type == family
    assert torch.allclose(logits(found), logits(model), atol=1e-5)
    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    assert tokenizer.encode("the the").tokens == ["th", "e", "Ġthe"]
    assert tokenizer.encode("a<|end|>").ids == [1, 0]


@pytest.mark.parametrize(
    ("kind", "error"), [("f16", 2e-3), ("bf16", 2e-2), ("q8_0", 6e-2), ("q4_0", 0.5), ("q4_1", 0.4)]
)
def test_each_type_is_as_far_off_as_its_bits(kind: str, error: float, tmp_path: Path) -> None:
    model = tiny("llama")
    found, _ = load_gguf(written(model, tmp_path, kind=kind))
    own, read = (m.model.layers[1].mlp.up_proj.weight.detach() for m in (model, found))
    kinds = gguf.GGMLQuantizationType
    expected = gguf.quants.dequantize(gguf.quants.quantize(own.numpy(), kinds[kind.upper()]), kinds[kind.upper()])
    assert np.array_equal(read.numpy(), expected)
    scale = float(logits(model).abs().max())
    assert 0 < float((logits(found) - logits(model)).abs().max()) < error * scale
    narrow = found.model.layers[1].mlp.down_proj.weight  # 48 columns are no whole blocks
    if kind.startswith("q"):
        assert torch.equal(narrow, model.model.layers[1].mlp.down_proj.weight.half().float())


GRIDS = [
    ("q4_0", GridSpec(4, 32)), ("q4_0", GridSpec(4, 64)), ("q4_0", GridSpec(4)), ("q4_0", GridSpec(3, 32)),
    ("q8_0", GridSpec(8)), ("q8_0", GridSpec(4, 32)), ("q4_1", GridSpec(4, 32)),
]  # fmt: skip


def dequantized(blocks: np.ndarray, kind: str) -> torch.Tensor:
    return torch.from_numpy(gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind.upper()]))


@pytest.mark.parametrize(("kind", "spec"), GRIDS, ids=lambda x: x if isinstance(x, str) else x.label)
def test_a_grid_goes_into_the_blocks_as_it_is(kind: str, spec: GridSpec) -> None:
    weight = torch.randn(48, 128, generator=torch.Generator().manual_seed(0)) * 0.1
    rounded = fitted(weight, spec).nearest(weight)
    blocks, stored, said = stored_as(rounded, kind=kind)
    assert (stored, said) == (kind, f"{kind}, as they were")
    assert torch.equal(dequantized(blocks, kind), rounded)
    assert blocks.shape == (48, 4 * {"q4_0": 18, "q4_1": 20, "q8_0": 34}[kind])


def test_a_grid_with_an_offset_is_one_of_q4_1_alone() -> None:
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0)) * 0.1
    rounded = half_quadratic(weight, bits=4, group=32, rounds=5)
    assert grid_blocks(rounded, kind="q4_0") is None
    blocks = grid_blocks(rounded, kind="q4_1")
    if blocks is not None:  # offsets may need more digits than fp16 has
        assert torch.equal(dequantized(blocks, "q4_1"), rounded)
    assert grid_blocks(weight, kind="q4_1") is None


def test_scaled_positions_of_llama_3_are_factors(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 64}
    rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    path = written(tiny("llama", rope_parameters=rope, max_position_embeddings=512), tmp_path)
    found = {t.name: t.data for t in gguf.GGUFReader(path).tensors}["rope_freqs.weight"]
    expected = []
    for place in range(4):  # Llama 3's rule, frequency by frequency
        wave = 2 * math.pi * 10000.0 ** (2 * place / 8)
        smooth = (64 / wave - 1.0) / (4.0 - 1.0)
        expected.append(1.0 if wave < 64 / 4 else 8.0 if wave > 64 else 1 / ((1 - smooth) / 8 + smooth))
    assert np.allclose(found, expected, rtol=1e-5)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "bias": ("llama", {"attention_bias": True}, "attention_bias = True"),
    "activation": ("llama", {"hidden_act": "gelu"}, "hidden_act = gelu"),
    "windows": ("qwen2", {"use_sliding_window": True, "layer_types": ["sliding_attention"] * 3}, "with a window"),
    "pattern": ("gemma3_text", {"layer_types": ["full_attention"] * 6}, "pattern of windows"),
    "scale": ("gemma3_text", {"query_pre_attn_scalar": 8}, "query_pre_attn_scalar = 8"),
    "family": ("mixtral", {}, "is not written as GGUF"),
    "yarn": (
        "llama",
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0,
                             "original_max_position_embeddings": 32}}, "kind yarn",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_llama_cpp_would_compute_otherwise_is_refused(name: str, tmp_path: Path) -> None:
    family, changes, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        written(tiny(family, **changes), tmp_path)


def sentencepiece_like() -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers

    pieces = ["<unk>", "<s>", "</s>", "<0x41>", "▁", "a", "b", "c", "ab", "▁ab", "abc", "▁abc"]
    merges = [("a", "b"), ("▁", "ab"), ("ab", "c"), ("▁ab", "c"), ("▁", "abc")]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Replace("▁", " ")
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def test_scores_stand_for_merges(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    own = sentencepiece_like()
    made = vocabulary_of(own.to_str(), size=66)
    assert (made.kind, made.merges, made.space_first) == ("llama", (), True)
    place = {token: number for number, token in enumerate(made.tokens)}
    assert made.scores[place["ab"]] > made.scores[place["▁ab"]] > made.scores[place["abc"]] > made.scores[place["▁abc"]]
    assert [made.types[place[t]] for t in ("<unk>", "<s>", "<0x41>", "ab", "[PAD20]")] == [2, 3, 6, 1, 5]
    files = {
        "tokenizer.json": own.to_str().encode(),
        "tokenizer_config.json": b'{"bos_token": "<s>", "eos_token": "</s>"}',
    }
    _, found = load_gguf(written(tiny("llama"), tmp_path, files=files))
    again = Tokenizer.from_str(found["tokenizer.json"].decode())
    for text in ("abc ab", "cab abc", "b"):
        assert [i for i in again.encode(text).ids if i > 2] == [i for i in own.encode(text).ids if i > 2], text


def test_tokenizers_that_a_file_has_no_words_for(tmp_path: Path) -> None:
    from tiny_models import save_tokenizer
    from tokenizers import Tokenizer, pre_tokenizers

    save_tokenizer(tmp_path)
    with pytest.raises(InputError, match="kind WordLevel"):
        vocabulary_of((tmp_path / "tokenizer.json").read_text(), size=66)
    tokenizer = Tokenizer.from_str(words(tmp_path)["tokenizer.json"].decode())
    with pytest.raises(InputError, match="for a model of 20"):
        vocabulary_of(tokenizer.to_str(), size=20)
    steps = {"smollm": [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)], "gpt-2": []}
    for rule, some in steps.items():
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(some) if some else pre_tokenizers.ByteLevel(False)
        assert vocabulary_of(tokenizer.to_str(), size=66).rule == rule
    own = [pre_tokenizers.Split("x", "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(own)
    with pytest.raises(InputError, match="splits text by"):
        vocabulary_of(tokenizer.to_str(), size=66)
