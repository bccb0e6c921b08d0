"""A step reads all weights but the rows of tables that it does not pick, and what was kept of the tokens before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from task_models import save_task_model
from tiny_models import language_config, language_model, save_tokenizer
from transformers import AutoModelForCausalLM

from hasten.pipeline.step_bytes import Kept, _read, cache_bytes, cache_precision, kept_by, weight_bytes
from hasten.records import Config, ModelRef
from hasten.runtimes import get_runtime
from hasten.runtimes.native import NativeConfig
from hasten.runtimes.onnxruntime import OnnxRuntimeConfig
from hasten.runtimes.openvino import OpenVinoConfig
from hasten.runtimes.torch import TorchConfig
from hasten.tasks.generation_wrappers import GenerationWrapper

TIED, APART = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}


def exported(family: str, config: Config, folder: Path, **changes: bool) -> Path:
    ids = np.arange(6, 14)[None]
    target, cache = folder / "model", folder / "cache"
    target.mkdir()
    cache.mkdir()
    example = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    wrapper = GenerationWrapper(language_model(family, **changes)).eval()
    get_runtime(config.kind).export(wrapper, config, calibration=[example], folder=target, cache=cache)
    return target


def parameters(family: str, changes: dict[str, bool]) -> tuple[int, int]:
    """(all that are read, those of the table of words)."""
    model = language_model(family, **changes)
    table = model.get_input_embeddings().weight.numel()
    whole = sum(p.numel() for p in model.parameters())
    return whole - (0 if changes["tie_word_embeddings"] else table), table


@pytest.mark.parametrize("changes", [TIED, APART], ids=["tied", "apart"])
@pytest.mark.parametrize(
    ("config", "size"),
    [
        (TorchConfig(), 4),
        (TorchConfig(precision="bf16"), 2),
        (OnnxRuntimeConfig(fusion=False), 4),
        (OpenVinoConfig(), 4),
        (NativeConfig(), 4),
    ],
    ids=["torch", "torch bf16", "onnxruntime", "openvino", "native"],
)
def test_of_llama_every_weight_is_read_once(
    config: Config, size: int, changes: dict[str, bool], tmp_path: Path
) -> None:
    folder = exported("llama", config, tmp_path, **changes)
    read, table = parameters("llama", changes)
    found = weight_bytes(folder=folder, kind=config.kind)
    assert found is not None
    # Graphs hold a few numbers of their own (masks, frequencies, shapes), far fewer than a table of words.
    assert size * read <= found < size * (read + table / 4)


@pytest.mark.parametrize("config", [TorchConfig(), NativeConfig()], ids=lambda config: config.kind)
def test_positions_of_gpt2_are_looked_up(config: Config, tmp_path: Path) -> None:
    folder = exported("gpt2", config, tmp_path)
    model = language_model("gpt2")
    whole = sum(p.numel() for p in model.parameters())
    assert weight_bytes(folder=folder, kind=config.kind) == 4 * (whole - model.transformer.wpe.weight.numel())


def test_native_integers_count_with_their_steps(tmp_path: Path) -> None:
    """int4: half a byte, and a step of fp16 for 32 of them; the head in int8, with a step of fp32 a row."""
    whole, table = parameters("llama", APART)
    model = language_model("llama", **APART)
    vectors = sum(p.numel() for p in model.parameters() if p.ndim == 1)
    folder = exported("llama", NativeConfig(precision="int4"), tmp_path, **APART)
    layers = whole - vectors - table
    # What is left are the layers' three sets of frequencies, and inputs that are no multiple of 32.
    wanted = layers * (1 / 2 + 2 / 32) + table + 4 * 66 + 4 * vectors
    found = weight_bytes(folder=folder, kind="native")
    assert found is not None
    assert wanted <= found < 1.2 * wanted


def test_of_files_that_nobody_can_read_nothing_is_said(tmp_path: Path) -> None:
    assert weight_bytes(folder=tmp_path, kind="executorch") is None


def test_integers_are_smaller(tmp_path: Path) -> None:
    read = parameters("llama", TIED)[0]
    eight = exported("llama", OpenVinoConfig(precision="int8-weights"), tmp_path, **TIED)
    found = weight_bytes(folder=eight, kind="openvino")
    assert found is not None
    assert read < found < 2 * read


def test_a_table_is_left_out_only_where_nothing_else_uses_it() -> None:
    sizes = {"table": 100, "scale": 10, "weight": 40, "axis": 1}
    picked = [
        ("Convert", ["table"], ["t"]),
        ("Multiply", ["t", "scale"], ["s"]),
        ("Gather", ["s", "ids", "axis"], ["x"]),
    ]
    product = [("MatMul", ["x", "weight"], ["y"])]
    assert _read(sizes, [*picked, *product]) == 41
    assert _read(sizes, [*picked, *product, ("MatMul", ["y", "s"], ["z"])]) == 151


def test_a_window_bounds_what_is_read() -> None:
    layers = (Kept(64, None), Kept(64, 10))
    assert cache_bytes(layers, tokens=30, precision="fp32") == 4 * 64 * (30 + 10)
    assert cache_bytes(layers, tokens=5, precision="int8") == 64 * 10
    assert cache_precision({"precision": "bf16"}) == "bf16"
    assert cache_precision({"precision": "bf16", "kv_cache": "int8"}) == "int8"
    assert cache_precision({"kind": "openvino", "precision": "int8-weights"}) == "fp32"
    assert cache_precision({"kind": "native", "precision": "int4"}) == "bf16"
    assert cache_precision({"kind": "native", "precision": "fp32"}) == "fp32"


@pytest.mark.parametrize(
    ("family", "numbers", "windows"),
    [
        ("gpt2", 64, [None] * 3),
        ("llama", 32, [None] * 3),
        ("gemma3_text", 32, [4, None, 4]),
        ("qwen2", 32, [4, None, 4]),
        ("mistral", 32, [4096] * 3),
    ],
)
def test_layers_say_what_they_keep(family: str, numbers: int, windows: list[int | None], tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(language_config(family)).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    found = kept_by(ref=ModelRef(str(tmp_path)), task="text-generation")
    assert found == tuple(Kept(numbers, window) for window in windows)


def test_an_encoder_decoder_does_not_say(tmp_path: Path) -> None:
    save_task_model(tmp_path, "summarization")
    assert kept_by(ref=ModelRef(str(tmp_path)), task="summarization") is None
