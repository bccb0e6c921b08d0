"""Decoders on the native engine: every family, shape and precision against eager PyTorch without a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoder_cases import (
    DECODERS,
    IDS,
    WINDOWED,
    adapter_to,
    batch_of,
    close,
    cut,
    foretold,
    greedy,
    of_rows,
    reader,
    session_of,
    uncached,
    writer,
)
from interchange_models import saved, tiny
from native_here import native_only
from torch import nn

import hasten
from hasten.models.load import load_checkpoint
from hasten.models.surgery import LowRankLinear, keep_heads, keep_neurons, replace_module
from hasten.native.engine import Engine
from hasten.records import ModelRef
from hasten.runtimes import native_generation, native_pages
from hasten.runtimes.generation import Generation
from hasten.runtimes.native import NativeConfig
from hasten.runtimes.native_decoders import lowered_writer
from hasten.runtimes.parity import parity
from hasten.tasks import get_task

pytestmark = native_only
FP32 = NativeConfig()
# Of the largest logit. Random weights of a few layers: what rounding 32 inputs to 8 and 4 bits does to them. With 4
# bits single logits may be anywhere, and all together must agree as exports have to.
BOUNDS = {"bf16": 0.03, "int8-dynamic": 0.08, "int5": 0.5, "int4": 1.0}


@pytest.mark.parametrize("family", DECODERS)
def test_steps_through_the_cache_are_the_uncached_model(family: str, tmp_path: Path) -> None:
    wrapper = writer(family)
    session = session_of(wrapper, tmp_path, FP32)
    assert session.precision == "fp32"
    for lengths in ((7,), (9, 4), (1,), (40, 2)):
        arrays, ids = batch_of(lengths, left=True), IDS[: len(lengths)]
        close(session.forced(arrays, ids), uncached(wrapper, arrays, ids), within=1e-4)
        close(session.run(arrays), uncached(wrapper, arrays, ids[:, :0])[:, 0], within=1e-4)


@pytest.mark.parametrize("family", DECODERS)
def test_greedy_text_is_eager_pytorchs(family: str, tmp_path: Path) -> None:
    wrapper, arrays = writer(family), batch_of((9, 4, 1), left=True)
    session = session_of(wrapper, tmp_path, FP32, threads=2)
    wanted = greedy(wrapper, arrays, 8)
    asked = Generation(new_tokens=8, ignore_ends=True)
    got = np.stack(list(session.generate(arrays, asked)), axis=1)
    assert got.dtype == np.int64
    assert np.array_equal(got, wanted)
    # Through the logits: an id that is never written leaves the short way.
    unlikely = int(session.run(arrays)[0].argmin())
    same = np.stack(
        list(session.generate(arrays, Generation(new_tokens=8, ignore_ends=True, never=(unlikely,)))), axis=1
    )
    assert np.array_equal(same[0, :1], wanted[0, :1])


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text"])
@pytest.mark.parametrize("together", [1, 3, 8])
def test_prompts_may_be_read_in_pieces(
    family: str, together: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One token at a time, rows that end within a piece and rows that go on, and blocks that have to be added."""
    wrapper, arrays = writer(family), batch_of((9, 20, 1, 6), left=True)
    ids = np.random.default_rng(2).integers(6, 60, size=(4, 30))
    session = session_of(wrapper, tmp_path, FP32)
    monkeypatch.setattr(native_generation, "_TOGETHER", together)
    monkeypatch.setattr(native_pages, "_AHEAD", 1)
    close(session.forced(arrays, ids), uncached(wrapper, arrays, ids), within=1e-4)


@pytest.mark.parametrize("window", [1, 3, 17, 64])
@pytest.mark.parametrize("family", WINDOWED)
def test_windows_shorter_and_longer_than_the_text(family: str, window: int, tmp_path: Path) -> None:
    wrapper, arrays = writer(family, sliding_window=window), batch_of((20, 5), left=True)
    assert wrapper.hf.config.sliding_window == window
    close(session_of(wrapper, tmp_path, FP32).forced(arrays, IDS), uncached(wrapper, arrays, IDS), within=1e-4)


ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "partial": {"rope_type": "default", "partial_rotary_factor": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("kind", ROPES)
def test_rotary_positions_are_the_models_own(kind: str, tmp_path: Path) -> None:
    family = "phi3" if kind == "partial" else "llama"
    wrapper = writer(family, rope_parameters={"rope_theta": 100.0, **ROPES[kind]})
    arrays = batch_of((30, 5), left=True)
    close(session_of(wrapper, tmp_path, FP32).forced(arrays, IDS), uncached(wrapper, arrays, IDS), within=1e-4)


SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "wide heads": ("llama", {"head_dim": 24}),
    "no biases": ("llama", {"attention_bias": False, "mlp_bias": False}),
    "one key head": ("gemma3_text", {"num_key_value_heads": 1}),
    "a head of its own": ("qwen3", {"tie_word_embeddings": False}),
    "a tied head": ("llama", {"tie_word_embeddings": True}),
    "bounded logits": ("gemma3_text", {"final_logit_softcapping": 2.0}),
    "bounded scores": ("gemma2", {"attn_logit_softcapping": 0.5, "final_logit_softcapping": 1.0}),
    "scores by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "plain scores": ("gpt2", {"scale_attn_weights": False}),
    "another scale": ("gemma3_text", {"query_pre_attn_scalar": 3}),
}


@pytest.mark.parametrize("what", SHAPES)
def test_what_configs_say(what: str, tmp_path: Path) -> None:
    family, changes = SHAPES[what]
    wrapper, arrays = writer(family, **changes), batch_of((9, 4), left=True)
    close(session_of(wrapper, tmp_path, FP32).forced(arrays, IDS), uncached(wrapper, arrays, IDS), within=1e-4)


@pytest.mark.parametrize("family", DECODERS)
def test_layers_that_were_cut_unequally(family: str, tmp_path: Path) -> None:
    wrapper, arrays = writer(family), batch_of((9, 4), left=True)
    cut(wrapper)
    session = session_of(wrapper, tmp_path, FP32)
    close(session.forced(arrays, IDS), uncached(wrapper, arrays, IDS), within=1e-4)
    session_of(wrapper, tmp_path / "int8", NativeConfig(precision="int8-dynamic")).run(arrays)


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_a_layer_without_heads_and_neurons_is_its_biases(family: str, tmp_path: Path) -> None:
    """Eager PyTorch cannot run one, so it is held against heads and neurons that nobody hears."""
    wrapper, arrays = writer(family), batch_of((9, 4), left=True)
    adapter = adapter_to(wrapper)
    layer: Any = adapter.layers(wrapper.hf)[1]
    with torch.no_grad():
        adapter.attention(layer).output.weight.zero_()
        adapter.ffn(layer).down.weight.zero_()
    wanted = uncached(wrapper, arrays, IDS)
    parts = adapter.attention(layer)
    for linear in parts.inputs:
        replace_module(layer, name_in(layer, linear), nn.Linear(linear.in_features, 0, bias=linear.bias is not None))
    thin = nn.Linear(0, parts.output.out_features, bias=parts.output.bias is not None)
    if parts.output.bias is not None:
        thin.bias = parts.output.bias
    replace_module(layer, name_in(layer, parts.output), thin)
    keep_neurons(adapter.ffn(layer), [])
    close(session_of(wrapper, tmp_path, FP32).forced(arrays, IDS), wanted, within=1e-4)


def name_in(layer: nn.Module, module: nn.Module) -> str:
    return next(name for name, found in layer.named_modules() if found is module)


def test_factors_are_two_products_or_multiplied_out(tmp_path: Path) -> None:
    wrapper, arrays = writer("llama"), batch_of((9, 4), left=True)
    for layer in adapter_to(wrapper).layers(wrapper.hf):
        for name, module in list(layer.named_modules()):
            if isinstance(module, nn.Linear):
                thin = LowRankLinear(module.in_features, module.out_features, rank=7, bias=module.bias is not None)
                for part in thin.parameters():
                    nn.init.normal_(part, std=0.2)
                replace_module(layer, name, thin)
    close(session_of(wrapper, tmp_path, FP32).forced(arrays, IDS), uncached(wrapper, arrays, IDS), within=1e-4)


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("family", DECODERS)
def test_rounded_weights_stay_near(family: str, precision: Any, tmp_path: Path) -> None:
    wrapper, arrays = writer(family), batch_of((9, 4), left=True)
    session = session_of(wrapper, tmp_path, NativeConfig(precision=precision))
    wanted = uncached(wrapper, arrays, IDS)
    close(session.forced(arrays, IDS), wanted, within=BOUNDS[precision])
    assert parity(list(wanted), list(session.forced(arrays, IDS)), precision) is None
    likeliest = next(session.generate(arrays, Generation(new_tokens=1)))
    assert np.array_equal(likeliest, session.run(arrays).argmax(axis=-1)), "the short way finds what the logits say"
    assert session.precision == precision


@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8"])
def test_caches_of_every_kind(kind: Any, tmp_path: Path) -> None:
    wrapper, arrays = writer("gemma3_text"), batch_of((30, 4), left=True)
    session = session_of(wrapper, tmp_path, NativeConfig(kv_cache=kind))
    off = {"fp32": 1e-4, "bf16": 2e-2, "int8": 5e-2}[kind]
    close(session.forced(arrays, IDS), uncached(wrapper, arrays, IDS), within=off)
    assert session.precision == f"fp32, {kind} cache"


@pytest.mark.parametrize("family", DECODERS)
def test_given_texts_are_foretold(family: str, tmp_path: Path) -> None:
    """What language-modeling and multiple-choice read: each next token's log-probability and the likeliest one."""
    wrapper, batch = reader(family), batch_of((12, 30, 2), left=False)
    found = session_of(wrapper, tmp_path, FP32, threads=2).run(batch)
    for got, wanted in zip(of_rows(found, batch), foretold(wrapper, batch), strict=True):
        close(got[:, 0], wanted[:, 0], within=1e-4)
        assert np.array_equal(got[:, 1], wanted[:, 1])
    rounded = session_of(wrapper, tmp_path / "int8", NativeConfig(precision="int8-dynamic")).run(batch)
    for got, wanted in zip(of_rows(rounded, batch), foretold(wrapper, batch), strict=True):
        assert abs(float((got - wanted)[:, 0].mean())) < 0.1


def test_heads_that_are_cut_leave_their_keys(tmp_path: Path) -> None:
    """A layer of one key head beside layers of two: each layer's cache has its own width."""
    wrapper, arrays = writer("llama"), batch_of((9, 4), left=True)
    adapter = adapter_to(wrapper)
    keep_heads(adapter.attention(adapter.layers(wrapper.hf)[1]), [1])
    adapter.settle(wrapper.hf)
    session = session_of(wrapper, tmp_path, FP32)
    close(session.forced(arrays, IDS), uncached(wrapper, arrays, IDS), within=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_gguf_file_is_written_on_from(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was dequantized is rounded our way."""
    pytest.importorskip("gguf", reason="no gguf package: pip install 'hasten[gguf]'")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "made" / "model.gguf"
    hasten.export(saved(tiny(family), tmp_path / "model"), to="gguf", out=file, precision="q8_0")
    task = get_task("text-generation")
    wrapper = task.wrap(load_checkpoint(ModelRef(str(file)), task=task)).eval()
    arrays = batch_of((9, 4), left=True)
    wanted = uncached(wrapper, arrays, IDS)
    close(session_of(wrapper, tmp_path / "fp32", FP32).forced(arrays, IDS), wanted, within=1e-4)
    session = session_of(wrapper, tmp_path / "int8", NativeConfig(precision="int8-dynamic"))
    close(session.forced(arrays, IDS), wanted, within=BOUNDS["int8-dynamic"])


@pytest.mark.parametrize("family", ["gpt2", "mistral", "gemma2", "gemma3_text"])
def test_prompts_and_single_tokens_mixed_in_one_call(family: str) -> None:
    """As an engine above would have it: rows that write while others are still read."""
    wrapper = writer(family)
    made = lowered_writer(wrapper, precision="fp32", group=32, embeddings=False, head="fp32")
    texts = np.random.default_rng(3).integers(6, 60, size=(3, 30)).astype(np.int32)
    pages = native_pages.Pages(made.layers, kind="fp32")
    pages.begin(np.array([12, 20, 7]))
    at = np.zeros(3, np.int64)
    with Engine(made.program, threads=2) as engine:
        for piece in ({0: 12}, {0: 1, 1: 11}, {1: 9, 2: 7, 0: 1}, {2: 1, 0: 1, 1: 1}, {1: 4, 2: 2}, {0: 15, 2: 20}):
            rows, counts = np.array(list(piece)), np.array(list(piece.values()))
            ids = np.concatenate([texts[row, at[row] : at[row] + n] for row, n in piece.items()])
            places = pages.take(rows, counts)
            found = engine.forward(
                ids, positions=places.positions, slots=places.slots, tables=places.tables, lengths=counts,
                cache=pages.cache,
            )  # fmt: skip
            for row, n, got in zip(rows, counts, found, strict=True):
                at[row] += n
                text = {"input_ids": texts[row : row + 1, : at[row]].astype(np.int64)}
                text["attention_mask"] = np.ones_like(text["input_ids"])
                close(got, uncached(wrapper, text, IDS[:1, :0])[0, -1], within=1e-4)
    assert at.tolist() == [30, 25, 30]


def test_one_token_more_of_every_row_is_what_pages_give_for_it() -> None:
    lengths = np.array([15, 1, 32])
    one, other = (native_pages.Pages([(1, 4)], kind="fp32") for _ in range(2))
    for pages in (one, other):
        pages.begin(lengths)
        pages.take(np.arange(3), lengths)
    for _ in range(40):
        told, wanted = one.take_one(), other.take(np.arange(3), np.ones(3, np.int64))
        for name in ("positions", "slots", "tables"):
            assert np.array_equal(getattr(told, name), getattr(wanted, name))
    assert len({int(slot) for slot in told.slots}) == 3
