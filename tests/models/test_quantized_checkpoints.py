"""Checkpoints that other programs quantized: the weights that their formulas give, and a refusal for all else.

The stored words are made here number by number, not with the package's own packing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interchange_models import logits, saved, tiny
from safetensors.torch import load_file, save_file

from hasten.models.interchange import conversions, dequantized
from hasten.models.interchange.words import pack_words, unpack_words
from hasten.models.load import load_checkpoint
from hasten.records import InputError, ModelRef
from hasten.tasks import get_task

Parts = dict[str, torch.Tensor]
# A square one, too: whether it lies the right way round shows only in its numbers.
MATRICES = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def stream(codes: list[int], bits: int) -> list[int]:
    """The words of one row: all codes as the digits of one large number, cut into 32 bits."""
    number = sum(code << (bits * place) for place, code in enumerate(codes))
    count = -(-len(codes) * bits // 32)
    return [(number >> (32 * word)) & 0xFFFFFFFF for word in range(count)]


def words_of(codes: np.ndarray, bits: int) -> torch.Tensor:
    rows = [stream([int(code) for code in row], bits) for row in codes]
    return torch.from_numpy(np.array(rows, dtype=np.uint32).view(np.int32))


def grid(shape: tuple[int, int], *, bits: int, group: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """codes [O, I], zeros [O, G] (at least 1), fp16 scales [O, G]."""
    rng = np.random.default_rng(seed)
    groups = (shape[0], -(-shape[1] // group))
    codes = rng.integers(0, 2**bits, shape)
    return codes, rng.integers(1, 2**bits, groups), rng.uniform(1e-3, 2e-2, groups).astype(np.float16)


def plain(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray, of: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(((codes - zeros[:, of]) * scales.astype(np.float32)[:, of]).astype(np.float32))


def gptq(shape: tuple[int, int], *, bits: int, less: int, shuffled: bool = False) -> tuple[torch.Tensor, Parts]:
    codes, zeros, scales = grid(shape, bits=bits, group=16)
    of = np.arange(shape[1]) // 16
    if shuffled:
        of = np.random.default_rng(1).permutation(of)
    parts = {
        "qweight": words_of(codes.T.copy().T, bits).T.contiguous(),
        "qzeros": words_of((zeros - less).T, bits),
        "scales": torch.from_numpy(scales.T.copy()), "g_idx": torch.from_numpy(of.astype(np.int32)),
    }  # fmt: skip
    return plain(codes, zeros, scales, of), parts


def awq(shape: tuple[int, int]) -> tuple[torch.Tensor, Parts]:
    codes, zeros, scales = grid(shape, bits=4, group=16)
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def columns(numbers: np.ndarray) -> torch.Tensor:
        mixed = numbers.reshape(len(numbers), -1, 8)[..., order].reshape(len(numbers), -1)
        return words_of(mixed, 4)

    parts = {"qweight": columns(codes.T), "qzeros": columns(zeros.T), "scales": torch.from_numpy(scales.T.copy())}
    return plain(codes, zeros, scales, np.arange(shape[1]) // 16), parts


def compressed(shape: tuple[int, int], *, bits: int, group: int | None, symmetric: bool) -> tuple[torch.Tensor, Parts]:
    codes, zeros, scales = grid(shape, bits=bits, group=group or shape[1])
    middle = 2 ** (bits - 1)
    parts = {
        "weight_packed": words_of(codes, bits), "weight_scale": torch.from_numpy(scales),
        "weight_shape": torch.tensor(shape),
    }  # fmt: skip
    if symmetric:
        zeros = np.full_like(zeros, middle)
    else:
        parts["weight_zero_point"] = words_of(zeros.T, bits).T.contiguous()
    return plain(codes, zeros, scales, np.arange(shape[1]) // (group or shape[1])), parts


def int_quantized(shape: tuple[int, int], *, zeros_too: bool = False) -> tuple[torch.Tensor, Parts]:
    rng = np.random.default_rng(0)
    codes = rng.integers(-127, 128, shape).astype(np.int8)
    scales = rng.uniform(1e-3, 2e-2, (shape[0], 1)).astype(np.float32)
    zeros = rng.integers(-20, 20, (shape[0], 1)).astype(np.int8)
    parts = {"weight": torch.from_numpy(codes), "weight_scale": torch.from_numpy(scales)}
    if zeros_too:
        parts["weight_zero_point"] = torch.from_numpy(zeros)
    shift = zeros.astype(np.float32) if zeros_too else np.float32(0)
    return torch.from_numpy((codes.astype(np.float32) - shift) * scales), parts


def of_float(shape: tuple[int, int]) -> tuple[torch.Tensor, Parts]:
    codes = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn)
    return codes.float() * 0.03125, {"weight": codes, "weight_scale": torch.tensor([0.03125])}


@dataclass(frozen=True)
class Case:
    """``entry``: the config's; ``make``: (weight, parts) of a shape."""

    make: Callable[[tuple[int, int]], tuple[torch.Tensor, Parts]]
    entry: dict[str, Any]
    extra: Parts = field(default_factory=dict)


def scheme(*, bits: int, strategy: str, group: int | None = None, kind: str = "int", **changes: Any) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": kind, "strategy": strategy, "group_size": group, "symmetric": True}
    return {"group_0": {"targets": ["Linear"], "weights": {**weights, **changes}}}


def ct(form: str, **settings: Any) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": scheme(**settings)}


CASES: dict[str, Case] = {
    "gptq": Case(lambda s: gptq(s, bits=4, less=1), {"quant_method": "gptq", "bits": 4, "group_size": 16}),
    "gptq by inputs": Case(
        lambda s: gptq(s, bits=4, less=1, shuffled=True),
        {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": True, "checkpoint_format": "gptq"},
    ),
    "gptq 2": Case(
        lambda s: gptq(s, bits=8, less=0),
        {"quant_method": "gptq", "bits": 8, "group_size": 16, "checkpoint_format": "gptq_v2"},
    ),
    "gptq of 3 bits": Case(lambda s: gptq(s, bits=3, less=1), {"quant_method": "gptq", "bits": 3, "group_size": 16}),
    "awq": Case(awq, {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm", "zero_point": True}),
    "packed 4": Case(
        lambda s: compressed(s, bits=4, group=16, symmetric=True),
        ct("pack-quantized", bits=4, strategy="group", group=16),
    ),
    "packed 4 with zeros": Case(
        lambda s: compressed(s, bits=4, group=16, symmetric=False),
        ct("pack-quantized", bits=4, strategy="group", group=16, symmetric=False),
    ),
    "packed 8": Case(
        lambda s: compressed(s, bits=8, group=None, symmetric=True), ct("pack-quantized", bits=8, strategy="channel")
    ),
    "int8": Case(
        int_quantized, ct("int-quantized", bits=8, strategy="channel"),
        {"model.layers.0.self_attn.q_proj.input_scale": torch.ones(1)},
    ),
    "int8 with zeros": Case(
        lambda s: int_quantized(s, zeros_too=True), ct("int-quantized", bits=8, strategy="channel", symmetric=False)
    ),
    "float8": Case(of_float, ct("float-quantized", bits=8, strategy="tensor", kind="float")),
}  # fmt: skip


def quantized(case: Case, folder: Path, **changes: Any) -> tuple[Path, dict[str, torch.Tensor]]:
    """A saved Llama with two matrices replaced, and what these are as floats."""
    saved(tiny("llama", **changes), folder)
    path = folder / "model.safetensors"
    stored, expected = load_file(path), {}
    for name in MATRICES:
        shape = tuple(stored.pop(f"{name}.weight").shape)
        expected[name], parts = case.make(shape)  # type: ignore[arg-type]
        stored |= {f"{name}.{part}": tensor.clone() for part, tensor in parts.items()}
    save_file({**stored, **case.extra}, path, metadata={"format": "pt"})
    say(folder, case.entry)
    return folder, expected


def say(folder: Path, entry: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": entry}))


def loaded(folder: Path) -> Any:
    return load_checkpoint(ModelRef(str(folder)), task=get_task("language-modeling")).model


@pytest.mark.parametrize("name", CASES)
def test_the_weights_are_what_the_formula_says(name: str, tmp_path: Path) -> None:
    folder, expected = quantized(CASES[name], tmp_path / "model")
    model = loaded(folder)
    same = tiny("llama")
    for matrix, weight in expected.items():
        assert torch.equal(model.get_submodule(matrix).weight, weight), matrix
        same.get_submodule(matrix).weight.data.copy_(weight)
    assert torch.allclose(logits(model), logits(same), atol=1e-5)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_every_group_of_a_mixed_config_has_its_own_matrices(tmp_path: Path) -> None:
    entry = ct("pack-quantized", bits=4, strategy="group", group=16)
    wide = {**entry["config_groups"]["group_0"], "targets": ["re:.*down_proj$"]}
    wide["weights"] = {**wide["weights"], "num_bits": 8, "strategy": "channel"}
    entry["config_groups"]["group_1"] = wide

    def make(shape: tuple[int, int]) -> tuple[torch.Tensor, Parts]:
        square = shape[0] == shape[1]
        return compressed(shape, bits=4 if square else 8, group=16 if square else None, symmetric=True)

    folder, expected = quantized(Case(make, entry), tmp_path / "model")
    model = loaded(folder)
    assert all(torch.equal(model.get_submodule(name).weight, weight) for name, weight in expected.items())


def test_matrices_that_lie_the_other_way_round(tmp_path: Path) -> None:
    """GPT-2's: the file has [outputs, inputs] like any other, transformers wants [inputs, outputs]."""
    folder = saved(tiny("gpt2"), tmp_path / "model")
    path, name = folder / "model.safetensors", "transformer.h.0.attn.c_proj"
    stored = load_file(path)
    expected, parts = gptq((32, 32), bits=4, less=1)
    stored.pop(f"{name}.weight")
    save_file({**stored, **{f"{name}.{k}": v for k, v in parts.items()}}, path, metadata={"format": "pt"})
    say(folder, {"quant_method": "gptq", "bits": 4, "group_size": 16})
    found = loaded(folder).get_submodule(name)
    assert torch.equal(found.weight, expected)  # prepared: a linear layer by now


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("table", ["nf4", "fp4"])
def test_bitsandbytes_of_4_bits(table: str, nested: bool, tmp_path: Path) -> None:
    functional = pytest.importorskip("bitsandbytes.functional", reason="no bitsandbytes")

    def make(shape: tuple[int, int]) -> tuple[torch.Tensor, Parts]:
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type=table, compress_statistics=nested)
        parts = {f"weight.{key}": value for key, value in state.as_dict(packed=True).items()}
        return functional.dequantize_4bit(packed, state), {"weight": packed, **parts}

    entry = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": table}
    # The library's own kernel for CPUs gives other weights where a row is no whole number of blocks.
    folder, expected = quantized(Case(make, entry), tmp_path / "model", hidden_size=64, intermediate_size=64)
    model = loaded(folder)
    assert all(torch.allclose(model.get_submodule(n).weight, w, atol=1e-6) for n, w in expected.items())


def test_bitsandbytes_of_8_bits(tmp_path: Path) -> None:
    def make(shape: tuple[int, int]) -> tuple[torch.Tensor, Parts]:
        _, parts = int_quantized(shape)
        largest = parts["weight_scale"][:, 0] * 127
        return parts["weight"].float() * (largest / 127)[:, None], {
            "weight": parts["weight"], "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8),
        }  # fmt: skip

    entry = {"load_in_8bit": True}  # without a method, as its first files were
    folder, expected = quantized(Case(make, entry), tmp_path / "model")
    model = loaded(folder)
    assert all(torch.allclose(model.get_submodule(n).weight, w, atol=1e-6) for n, w in expected.items())


def broken(parts: Parts, **changes: Any) -> Parts:
    return {k: v for k, v in {**parts, **changes}.items() if v is not None}


def without(
    make: Callable[..., tuple[torch.Tensor, Parts]], **changes: Any
) -> Callable[..., tuple[torch.Tensor, Parts]]:
    return lambda shape: (make(shape)[0], broken(make(shape)[1], **changes))


GPTQ, AWQ, PACKED = CASES["gptq"], CASES["awq"], CASES["packed 4"]
ACT = {"model.layers.0.mlp.act_fn.scales": torch.ones(48)}
FOR_TABLES = {**scheme(bits=4, strategy="group", group=16)["group_0"], "targets": ["Embedding"]}
REFUSED: dict[str, tuple[Case, str]] = {
    "method": (Case(GPTQ.make, {"quant_method": "hqq"}), "quantized by 'hqq'"),
    "no method": (Case(GPTQ.make, {"bits": 4}), "quantized by 'none'"),
    "marlin": (Case(GPTQ.make, {**GPTQ.entry, "checkpoint_format": "marlin"}), "layout 'marlin'"),
    "gemv": (Case(AWQ.make, {**AWQ.entry, "version": "gemv"}), "layout 'gemv'"),
    "bits": (Case(GPTQ.make, {**GPTQ.entry, "bits": 8}), "4 bits, and the config says 8"),
    "no zeros": (Case(without(GPTQ.make, qzeros=None), GPTQ.entry), "q_proj: 'qzeros'"),
    "scaled inputs": (Case(AWQ.make, AWQ.entry, ACT), "act_fn.scales belongs to no matrix"),
    "group": (Case(AWQ.make, {**AWQ.entry, "group_size": 32}), "groups of 32"),
    "scales": (Case(without(PACKED.make, weight_scale=torch.ones(3, 2)), PACKED.entry), "scales"),
    "not finite": (Case(without(GPTQ.make, scales=torch.full((2, 32), torch.inf)), GPTQ.entry), "not finite|scales"),
    "shape": (Case(without(PACKED.make, weight_shape=torch.tensor([32, 10**6])), PACKED.entry), "words"),
    "format": (Case(PACKED.make, {**PACKED.entry, "format": "nvfp4-pack-quantized"}), "nvfp4"),
    "strategy": (Case(PACKED.make, ct("pack-quantized", bits=4, strategy="block")), "'block'"),
    "unnamed": (Case(PACKED.make, {**PACKED.entry, "config_groups": {"g": FOR_TABLES}}), "no group"),
    "not quantized": (Case(lambda s: (torch.zeros(s), {"weight": torch.zeros(s)}), GPTQ.entry), "no matrix in it"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_gets_a_sentence_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    case, message = REFUSED[name]
    folder, _ = quantized(case, tmp_path / "model")
    with pytest.raises(InputError, match=message):
        loaded(folder)
    kept = conversions.conversions_folder()
    assert not kept.exists() or not [path for path in kept.iterdir() if path.is_dir()]


def test_a_checkpoint_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, expected = quantized(CASES["awq"], tmp_path / "model")
    calls = []
    true = dequantized.plain_weights
    monkeypatch.setattr(dequantized, "plain_weights", lambda *a: calls.append(1) or true(*a))
    first, again = loaded(folder), loaded(folder)
    assert len(calls) == 1
    assert torch.equal(logits(first), logits(again))
    config = json.loads((folder / "config.json").read_text())  # the same checkpoint, said otherwise
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    assert not torch.equal(logits(loaded(folder)), logits(first))
    assert len(calls) == 2
    assert torch.equal(first.get_submodule(MATRICES[0]).weight, expected[MATRICES[0]])


def test_what_was_used_longest_ago_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    sources = [tmp_path / name for name in "abc"]
    made = []
    for number, source in enumerate(sources):
        source.write_text(source.name)
        if number == 2:
            monkeypatch.setattr(conversions, "_MOST_BYTES", 150)
            for age, folder in enumerate(made):  # the first was used last
                os.utime(folder, (1000.0 - age, 1000.0 - age))
        made.append(conversions.converted([source], make=lambda f: (f / "x").write_bytes(b"x" * 100) and None))
    assert [folder.exists() for folder in made] == [True, False, True]


def test_a_cache_that_cannot_be_written_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "taken"))
    folder, _ = quantized(CASES["awq"], tmp_path / "model")
    with pytest.raises(InputError, match="XDG_CACHE_HOME"):
        loaded(folder)


@pytest.mark.parametrize("bits", range(1, 9))
def test_words_hold_every_code(bits: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 2**bits, (3, 45)).astype(np.uint8)
    words = pack_words(torch.from_numpy(codes), bits=bits)
    assert torch.equal(words, words_of(codes, bits))
    assert np.array_equal(unpack_words(words, bits=bits, count=45).numpy(), codes)
    with pytest.raises(ValueError, match="words"):
        unpack_words(words, bits=bits, count=200)
