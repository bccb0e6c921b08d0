"""ExecuTorch files: what is in them, what they compute in integers, what they have room for, and what is refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_integer_graphs import rows, wrapper
from tiny_models import image_config, language_model, tiny_config
from torch import nn

from hasten.models.precision import keep_fp32
from hasten.passes.fake_quant import fake_quantized, round_weight
from hasten.passes.matrices import encoder_matrices
from hasten.records import Rejected
from hasten.runtimes import get_runtime
from hasten.runtimes.executorch import ExecuTorchConfig, ExecuTorchSession
from hasten.runtimes.executorch_attention import register_one_row
from hasten.runtimes.executorch_program import delegated, longest, shares_of
from hasten.runtimes.executorch_quantize import RoundedLinear, coded, quantized
from hasten.runtimes.onnx_graph import attention
from hasten.runtimes.parity import parity
from hasten.tasks.wrappers import ImageWrapper, NextTokenWrapper, Wrapper

FP32, INT8, INT4 = (ExecuTorchConfig(precision=p) for p in ("fp32", "int8-dynamic", "int4"))  # type: ignore[arg-type]
Feeds = list[dict[str, Any]]
WINDOWS = ["sliding_attention", "full_attention"]


def exported(config: ExecuTorchConfig, model: Wrapper, folder: Path, feeds: Feeds | None = None) -> Path:
    for name in ("model", "cache"):
        (folder / name).mkdir(parents=True)
    done = get_runtime("executorch").export(
        model, config, calibration=feeds or rows(16), folder=folder / "model", cache=folder / "cache"
    )
    assert done.notes == tuple(facts(folder / "model")["notes"])
    return folder / "model"


def outputs(config: ExecuTorchConfig, folder: Path, feeds: Feeds | None = None) -> list[np.ndarray[Any, Any]]:
    session = get_runtime("executorch").open(folder, config, threads=1, cores=(0,))
    return [session.run(row) for row in feeds or rows(16)]


def eager(model: nn.Module, feeds: Feeds | None = None) -> list[np.ndarray[Any, Any]]:
    with torch.inference_mode():
        return [model(**{k: torch.from_numpy(v) for k, v in row.items()}).numpy() for row in feeds or rows(16)]


def facts(folder: Path) -> Any:
    return json.loads((folder / "model.json").read_text())


def pictured() -> ImageWrapper:
    """One layer over 16 patches: without a free size, lowering takes seconds."""
    from transformers import AutoModelForImageClassification

    torch.manual_seed(0)
    return ImageWrapper(AutoModelForImageClassification.from_config(image_config("vit", num_hidden_layers=1))).eval()


def pictures() -> Feeds:
    rng = np.random.default_rng(0)
    return [{"pixel_values": rng.standard_normal((n, 3, 16, 16)).astype(np.float32)} for n in (1, 3)]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(FP32, pictured(), tmp_path_factory.mktemp("images") / "fp32", pictures())


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(INT4, wrapper(), tmp_path_factory.mktemp("texts") / "int4")


# ------------------------------------------------------------------ what is in a file


def test_the_facts_say_who_computes_what(images: Path) -> None:
    found = facts(images)
    operators = found["operators"]
    assert operators["xnnpack"] > operators["parts"] > 0
    assert not {"linear", "bmm", "_softmax", "gelu", "convolution"} & operators["others"].keys()
    assert "native_layer_norm" in operators["others"]
    every = operators["xnnpack"] + sum(operators["others"].values())
    assert f"XNNPACK computes {operators['xnnpack']} of {every} operators" in found["notes"][0]
    assert found["inputs"] == [{"name": "pixel_values", "dtype": "float32", "shape": [1, 3, 16, 16]}]
    assert (found["tokens"], found["rows"], found["precision"]) == (None, 1, "fp32")
    # Six matrices of the layer; the classifier.
    assert found["matrices"] == {"int4": 0, "int8": 0, "fp32": 7}


def test_images_by_one_and_by_several(images: Path) -> None:
    assert parity(eager(pictured(), pictures()), outputs(FP32, images, pictures()), "fp32") is None


def test_the_second_export_comes_from_the_cache(images: Path, tmp_path: Path) -> None:
    config = ExecuTorchConfig(threads=1)
    done = get_runtime("executorch").export(
        pictured(), config, calibration=pictures(), folder=tmp_path, cache=images.parent / "cache"
    )
    assert (tmp_path / "model.pte").read_bytes() == (images / "model.pte").read_bytes()
    assert "XNNPACK computes" in done.notes[0]


@pytest.mark.slow
def test_texts_in_int4(texts: Path) -> None:
    model, found = wrapper(), facts(texts)
    # Six matrices in each of two layers; pooler and classifier stay.
    assert found["matrices"] == {"int4": 12, "int8": 0, "fp32": 2}
    assert [i["name"] for i in found["inputs"]] == ["input_ids", "attention_mask"]
    assert found["tokens"] == 66
    # All that is left of a layer are its norms.
    assert found["operators"]["parts"] <= 8
    assert not {"linear", "bmm", "_softmax", "permute_copy"} & found["operators"]["others"].keys()
    linears = [m.linear for m in encoder_matrices(model, what="a test")]
    with fake_quantized(linears, bits=4, group=32, per="token"):
        wanted = np.concatenate(eager(model))
    got = np.concatenate(outputs(INT4, texts))
    assert np.abs(got - wanted).max() < 0.02 * np.abs(wanted).max()
    assert np.abs(got - np.concatenate(eager(model))).max() > 0


@pytest.mark.slow
def test_calls_of_several_rows_and_of_one_agree(texts: Path, tmp_path: Path) -> None:
    config = ExecuTorchConfig(precision="int4", rows=8)
    folder = exported(config, wrapper(), tmp_path)
    rng = np.random.default_rng(1)
    batch = {"input_ids": rng.integers(4, 60, (11, 20)), "attention_mask": np.ones((11, 20), np.int64)}
    batch["attention_mask"][::2, 12:] = 0
    (many,), (one,) = (outputs(c, f, [batch]) for c, f in ((config, folder), (INT4, texts)))
    assert many.shape == (11, 3)
    np.testing.assert_allclose(many, one, atol=1e-3)


# ------------------------------------------------------------------ what it computes


def reference(states: np.ndarray[Any, Any], weight: np.ndarray[Any, Any], bits: int, group: int) -> Any:
    """The formula of 8da4w (8da8w), in whole numbers: sum over groups of s_x s_w sum (q_x - z_x) q_w."""
    low, high = np.minimum(states.min(-1), 0.0), np.maximum(states.max(-1), 0.0)
    step = ((high - low) / 255).astype(np.float32)[:, None]
    zero = np.clip(-128 - np.rint(low[:, None] / step), -128, 127)
    codes = np.clip(np.rint(states / step) + zero, -128, 127) - zero
    most = 2 ** (bits - 1) - 1
    parts = weight.reshape(len(weight), -1, group)
    steps = np.abs(parts).max(-1) / most
    # Rounded to the 8 significant bits of bf16, ties to even.
    raw = steps.astype(np.float32).view(np.uint32)
    steps = (((raw + 0x7FFF + ((raw >> 16) & 1)) >> 16) << 16).view(np.float32) if bits == 4 else steps
    whole = np.clip(np.rint(parts / steps[..., None]), -most, most)
    sums = np.einsum("tgs,ogs->tog", codes.reshape(len(states), -1, group), whole)
    return step * (sums * steps).sum(-1)


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 64), (8, 128)])
def test_a_small_matrix_computes_the_formula(bits: int, group: int) -> None:
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(128, 24, bias=False)
    with torch.no_grad():  # as it comes out of training
        weight = torch.randn(24, 128, generator=generator)
        linear.weight.copy_(round_weight(weight, bits=bits, group=group if bits == 4 else None))
    states = torch.randn(9, 128, generator=generator) * 10 ** torch.linspace(-2, 1, 9)[:, None]
    rounded = RoundedLinear(linear, bits=bits, group=group if bits == 4 else None)
    wanted = reference(states.numpy(), linear.weight.detach().numpy(), bits, group)
    scale = np.abs(wanted).max(axis=1, keepdims=True)
    np.testing.assert_allclose(rounded(states).detach().numpy() / scale, wanted / scale, atol=1e-5)
    found = program_of(rounded, states)
    # A tie between two codes of an activation may fall to the other side.
    np.testing.assert_allclose(found / scale, wanted / scale, atol=5e-3)
    # Training sees the same but for the steps, which it leaves unrounded: less than 1/256 of each.
    with fake_quantized([linear], bits=bits, group=group if bits == 4 else None, per="token"):
        trained = linear(states[None])[0].detach().numpy()
    np.testing.assert_allclose(trained / scale, wanted / scale, atol=1e-5 if bits == 8 else 4e-3)


def program_of(module: nn.Module, states: torch.Tensor) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from executorch.runtime import Runtime

        edge = delegated(torch.export.export(module.eval(), (states,), strict=False))
    assert shares_of(edge).others == {}
    program = Runtime.get().load_program(bytes(edge.to_executorch().buffer))
    return program.load_method("forward").execute([states])[0].numpy()


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.integers(1, 3), st.sampled_from([32, 64]), st.integers(0, 1000))
def test_trained_weights_keep_their_codes(out: int, groups: int, group: int, seed: int) -> None:
    weight = torch.randn(out, groups * group, generator=torch.Generator().manual_seed(seed))
    on_grid = round_weight(weight, bits=4, group=group)
    codes, steps = coded(on_grid, bits=4, group=group)
    assert torch.allclose(coded(weight, bits=4, group=group)[1], steps, rtol=2**-7)
    own = on_grid.view(out, groups, group).abs().amax(-1) / 7
    assert torch.equal(codes.view(out, groups, group), (on_grid.view(out, groups, group) / own[..., None]).round())
    assert float((steps / own - 1).abs().max()) <= 2**-8
    assert torch.equal(steps, steps.bfloat16().float())


def test_groups_of_zeros_have_a_step_that_is_none() -> None:
    codes, steps = coded(torch.zeros(2, 64), bits=4, group=32)
    assert not codes.any()
    assert torch.equal(steps, torch.ones(2, 2))


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "gemma2"])
def test_attention_of_one_row_is_attention(family: str) -> None:
    """Padding, causal masks, windows, heads that share keys, capped scores."""
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    if family == "bert":
        hf = AutoModelForSequenceClassification.from_config(tiny_config("bert")).eval()
    else:
        hf = language_model(family)
    ids = torch.randint(6, 60, (1, 13))
    for padding in (0, 4):
        mask = torch.ones_like(ids)
        mask[:, 13 - padding :] = 0
        with torch.inference_mode():
            with attention(hf, "eager"):
                wanted = hf(input_ids=ids, attention_mask=mask).logits
            with attention(hf, register_one_row()):
                found = hf(input_ids=ids, attention_mask=mask).logits
        real = slice(0, 13 - padding) if family != "bert" else slice(None)
        assert torch.allclose(found[:, real], wanted[:, real], atol=1e-5)
        assert float(wanted.abs().max()) > 1e-3


# ------------------------------------------------------------------ what it leaves alone and what it refuses


def test_what_must_stay_fp32_stays_and_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = pictured()
    names = [n for n, m in model.hf.named_modules() if isinstance(m, nn.Linear) and n != "classifier"]
    keep_fp32(model.hf, names[:2])
    before, wanted = {n: id(p) for n, p in model.named_parameters()}, eager(model, pictures())
    folder = exported(INT4, model, tmp_path / "kept", pictures())
    assert facts(folder)["matrices"] == {"int4": 4, "int8": 0, "fp32": 3}
    assert {n: id(p) for n, p in model.named_parameters()} == before
    assert all(np.array_equal(a, b) for a, b in zip(eager(model, pictures()), wanted, strict=True))
    assert parity(wanted, outputs(INT4, folder, pictures()), "int4") is None


def test_what_cannot_be_found_is_refused(tmp_path: Path) -> None:
    model = wrapper()
    keep_fp32(model.hf, ["bert.encoder.layer.7.output.dense"])
    with pytest.raises(Rejected, match=r"layer\.7\.output\.dense"):
        exported(INT8, model, tmp_path)


def test_a_matrix_without_whole_groups_has_eight_bits() -> None:
    model = nn.Sequential(nn.Linear(64, 40), nn.Linear(40, 8))
    model.add_module("lm_head", nn.Linear(64, 8))
    model.add_module("classifier", nn.Linear(64, 8))
    with quantized(model, bits=4, group=32, keep=()) as counts:
        assert (counts.int4, counts.int8, counts.fp32) == (1, 2, 1)
        assert [type(m).__name__ for m in model] == [*["RoundedLinear"] * 3, "Linear"]
    assert all(type(m) is nn.Linear for m in model)


def test_room_for_tokens(images: Path) -> None:
    made = facts(images) | {"tokens": 66, "inputs": [{"name": "input_ids"}]}
    with pytest.raises(Rejected, match=r"67 tokens.* 66"):
        ExecuTorchSession(None, facts=made).run({"input_ids": np.ones((1, 67), np.int64)})

    class Positioned(nn.Module):
        def __init__(self, positions: int | None) -> None:
            super().__init__()
            self.config = SimpleNamespace(max_position_embeddings=positions)

    def feed(length: int) -> Any:
        return [{"input_ids": np.ones((1, length), np.int64)}]

    model = Positioned(4096)
    assert longest(model, feed(30)) == 512
    assert longest(model, feed(600)) == 1024
    assert longest(model, feed(4000)) == 4096
    assert longest(Positioned(None), feed(30)) == 512
    model.add_module("position_embeddings", nn.Embedding(66, 4, padding_idx=1))
    model.config.max_position_embeddings = 66
    assert longest(model, feed(30)) == 64  # counted from behind the padding


def test_a_cache_that_was_cut_off_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Facts come last and under their own name whole: a kill before them leaves nothing that passes for made."""
    made = []

    def lowered(*_: Any, **__: Any) -> tuple[bytes, dict[str, Any]]:
        made.append(1)
        return b"program", {"inputs": [{"name": "input_ids"}], "notes": []}

    def export() -> Any:
        return get_runtime("executorch").export(None, FP32, calibration=[], folder=tmp_path / "model", cache=tmp_path)

    (tmp_path / "model").mkdir()
    monkeypatch.setattr("hasten.runtimes.executorch_program.lowered", lowered)
    export()
    cache = next(tmp_path.glob("executorch-*"))
    assert sorted(path.name for path in cache.iterdir()) == ["model.json", "model.pte"]
    export()
    assert len(made) == 1
    (cache / "model.json").replace(cache / "model.json.part")
    (cache / "model.pte").write_bytes(b"half")
    export()
    assert len(made) == 2
    assert (tmp_path / "model" / "model.pte").read_bytes() == b"program"
    (cache / "model.json").write_text("{")
    with pytest.raises(Rejected, match="JSONDecodeError"):
        export()


def test_a_damaged_program_is_rejected(images: Path, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_bytes((images / "model.json").read_bytes())
    (tmp_path / "model.pte").write_bytes((images / "model.pte").read_bytes()[:2000])
    with pytest.raises(Rejected, match="open"):
        get_runtime("executorch").open(tmp_path, FP32, threads=1, cores=(0,))


def test_models_that_are_open_at_once_share_their_threads(images: Path) -> None:
    room = get_runtime("executorch")
    first = room.open(images, FP32, threads=1, cores=(0,))
    second = room.open(images, FP32, threads=1, cores=(0,))
    with pytest.raises(Rejected, match="a model is open in this process with 1 threads, and 2 are asked for"):
        room.open(images, FP32, threads=2, cores=(0, 1))
    assert np.array_equal(first.run(pictures()[0]), second.run(pictures()[0]))
    for session in (first, second):
        session.close()
    wider = room.open(images, FP32, threads=2, cores=(0, 1))
    assert len(wider.run(pictures()[1])) == 3


def test_an_architecture_that_cannot_be_lowered_is_rejected_with_the_reason(tmp_path: Path) -> None:
    model = NextTokenWrapper(language_model("mixtral")).eval()
    with pytest.raises(Rejected, match="data-dependent"):
        exported(FP32, model, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "changes"),
    [("gpt2", {"n_layer": 1}), ("qwen2", {"num_hidden_layers": 2, "layer_types": WINDOWS})],
    ids=["gpt2", "qwen2"],
)
def test_decoders(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    model = NextTokenWrapper(language_model(family, **changes)).eval()
    folder = exported(INT4, model, tmp_path / "decoder")
    wanted, found = eager(model), outputs(INT4, folder)
    # The second output is the likeliest token's number, which is no quantity.
    assert parity([o[..., 0] for o in wanted], [o[..., 0] for o in found], "int4") is None
    assert facts(folder)["matrices"]["int8"] > 0
    assert "matrices are int8" in facts(folder)["notes"][1]
