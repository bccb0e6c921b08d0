"""The cache in 8 bits: against its formula, against transformers' own cache, and through whole sessions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundles_for_tests import language_bundle
from generation_cases import opened, prompts, uncached, wrapped
from interchange_models import saved, tiny
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer

from hasten.bundle import load
from hasten.bundle.answers import Answers
from hasten.plan.choose import is_tuned_baseline
from hasten.plan.space import recipes
from hasten.records import Recipe, Rejected, Trial
from hasten.runtimes import get_runtime, read_recipe
from hasten.runtimes.generation import Generation
from hasten.runtimes.generation_spaces import generation_space
from hasten.runtimes.int8_cache import Int8Layer, Int8WindowLayer, _in_8_bits, int8_cache, rounded
from hasten.runtimes.openvino import OpenVinoConfig
from hasten.runtimes.openvino_compile import compiled_apart
from hasten.runtimes.openvino_decoder import check_rounded
from hasten.runtimes.parity import judged_as, overall_cosine, parity
from hasten.runtimes.torch import TorchConfig
from hasten.tasks.wrappers import LogitsWrapper

INT8 = TorchConfig(kv_cache="int8")
IDS = np.random.default_rng(1).integers(6, 60, size=(2, 6))


def states(tokens: int, *, seed: int = 0, size: int = 8) -> torch.Tensor:
    """[2, 3, tokens, size] of unequal scale, off zero."""
    rng = np.random.default_rng(seed)
    scales = rng.uniform(0.1, 30.0, size=(2, 3, tokens, 1))
    return torch.from_numpy((rng.normal(size=(2, 3, tokens, size)) * scales + scales).astype(np.float32))


def by_hand(values: torch.Tensor) -> np.ndarray:
    """What 256 levels between each vector's own lowest and highest number make of it, in double."""
    x = values.double().numpy()
    low, high = x.min(axis=-1, keepdims=True), x.max(axis=-1, keepdims=True)
    step = (high - low) / 255
    return low + step * np.round((x - low) / np.where(step == 0, 1, step))


def test_the_formula_on_small_matrices() -> None:
    given = states(5)
    found = rounded(given)
    whole = found.before(given[:, :, :0])
    assert found.codes.dtype == torch.uint8
    assert {int(found.codes.min()), int(found.codes.max())} == {0, 255}
    assert np.allclose(whole.numpy(), by_hand(given), atol=1e-4)
    assert bool(((whole - given).abs() <= 0.5001 * found.scale + 1e-5).all())
    worse = (whole - given).abs().max()
    assert worse > 0.2 * found.scale.max(), "something was rounded at all"


def test_vectors_of_one_number_and_broken_ones() -> None:
    same = torch.full((1, 1, 2, 4), -3.7)
    assert torch.equal(rounded(same).before(same[:, :, :0]), same)
    for broken in (torch.nan, torch.inf):
        given = states(2)
        given[0, 0, 1, 3] = broken
        restored = rounded(given).before(given[:, :, :0])
        assert not torch.isfinite(restored[0, 0, 1]).all()
        assert torch.isfinite(restored[1]).all()


def test_a_call_sees_its_own_tokens_unrounded_and_the_past_rounded_once() -> None:
    layer, parts = Int8Layer(), [states(n, seed=n) for n in (4, 1, 2)]
    seen = [layer.update(part, -part) for part in parts]
    assert torch.equal(seen[0][0], parts[0])
    for number in (1, 2):
        keys, values = seen[number]
        past = np.concatenate([by_hand(part) for part in parts[:number]], axis=2)
        assert np.allclose(keys[:, :, : past.shape[2]].numpy(), past, atol=1e-4)
        assert torch.equal(keys[:, :, past.shape[2] :], parts[number])
        assert torch.allclose(values, -keys, atol=1e-4)
    assert layer.get_seq_length() == 7
    assert np.allclose(layer.keys.numpy(), np.concatenate([by_hand(part) for part in parts], axis=2), atol=1e-4)
    assert layer.get_mask_sizes(3) == (10, 0)


@pytest.mark.parametrize("window", [2, 4, 9])
def test_windows_forget_what_transformers_own_forget(window: int) -> None:
    ours, theirs = Int8WindowLayer(window), DynamicSlidingWindowLayer(sliding_window=window)
    for number, tokens in enumerate((1, 5, 1, 1, 3, 1)):
        part = states(tokens, seed=number)
        assert ours.get_mask_sizes(tokens) == theirs.get_mask_sizes(tokens)
        keys, values = ours.update(part, -part)
        wanted, _ = theirs.update(part, -part)
        assert keys.shape == wanted.shape
        step = float((wanted.amax(-1) - wanted.amin(-1)).max()) / 255
        assert float((keys - wanted).abs().max()) <= 0.51 * step
        assert torch.allclose(values, -keys, atol=1e-3)
        assert ours.get_seq_length() == theirs.get_seq_length()
    assert ours.get_max_length() == theirs.get_max_length()


def test_little_more_than_a_quarter_of_the_bytes_stays() -> None:
    layer, plain = Int8Layer(), DynamicLayer()
    for tokens in (40, 1, 1):
        part = states(tokens, size=64)
        layer.update(part, part)
        plain.update(part, part)
    held = [t for kept in layer._kept or () for t in (kept.codes, kept.scale, kept.low)]
    # What lies behind a tensor counts, not what it shows of it.
    bytes_held = sum(t.untyped_storage().nbytes() for t in (*held, *(layer._nothing or ())))
    assert bytes_held <= 0.3 * (plain.keys.nbytes + plain.values.nbytes)
    window = Int8WindowLayer(4)
    window.update(states(40), states(40))
    kept = window._kept
    assert kept is not None
    assert kept[0].codes.untyped_storage().nbytes() == 2 * 3 * 3 * 8


def test_in_16_bits_it_gives_16_bits() -> None:
    layer, part = Int8Layer(), states(3).bfloat16()
    layer.update(part, part)
    keys, _ = layer.update(part[:, :, :1], part[:, :, :1])
    assert keys.dtype == layer.keys.dtype == torch.bfloat16
    assert torch.equal(keys[:, :, 3:], part[:, :, :1])


FAMILIES = ("llama", "gpt2", "gemma3_text", "t5", "whisper")


@pytest.mark.parametrize("family", FAMILIES)
def test_sessions_write_nearly_what_they_would(family: str, tmp_path: Path) -> None:
    wrapper, arrays = wrapped(family), prompts(family, lengths=(9, 4))
    wanted = uncached(wrapper, arrays, IDS)
    plain = opened(wrapper, TorchConfig(), tmp_path / "plain", example=arrays)
    session = opened(wrapper, INT8, tmp_path / "int8", example=arrays)
    whole, got = plain.forced(arrays, IDS), session.forced(arrays, IDS)
    assert session.precision == "fp32, int8 cache"
    assert np.array_equal(got[:, 0], whole[:, 0]), "a prompt is read as ever"
    assert not np.array_equal(got[:, 1:], whole[:, 1:]), "its past is not"
    assert parity(list(wanted), list(got), judged_as({"precision": "fp32", "kv_cache": "int8"})) is None
    assert overall_cosine(wanted, got) > 0.9995
    again = session.forced(arrays, IDS)
    assert np.array_equal(got, again), "nothing is left of the last batch"
    asked = Generation(new_tokens=5, ignore_ends=True)
    assert len(list(session.generate(arrays, asked))) == 5


@pytest.mark.parametrize("family", ["llama", pytest.param("t5", marks=pytest.mark.slow)])
def test_openvino_rounds_every_state(family: str, tmp_path: Path) -> None:
    """Its states, read back, lie on 256 levels between each vector's own lowest and highest number, and only then."""
    wrapper, arrays = wrapped(family), prompts(family, lengths=(9, 4))
    found = {}
    for config in (OpenVinoConfig(), OpenVinoConfig(kv_cache="int8")):
        session = opened(wrapper, config, tmp_path / config.label.replace(" ", "-"), example=arrays)
        with session._decoder() as decoder:
            decoder.prefill({name: arrays[name] for name in session.input_names}, session.facts.start)
            decoder.step(IDS[:, 0])
            off = [off_levels(np.array(state.state.data)) for state in decoder._request.query_state()]
        found[session.precision] = (off, session.forced(arrays, IDS))
    (plain, whole), (levels, got) = found["fp32"], found["fp32, int8 cache"]
    assert min(plain) > 0.1
    assert max(levels) < 0.01
    assert not np.array_equal(whole, got)
    assert overall_cosine(uncached(wrapper, arrays, IDS), got) > 0.9995


def off_levels(values: np.ndarray) -> float:
    """How far the farthest number lies from the nearest of 256 levels, in steps."""
    x = values.astype(np.float64)
    low, high = x.min(axis=-1, keepdims=True), x.max(axis=-1, keepdims=True)
    places = (x - low) / (high - low) * 255
    return float(np.abs(places - np.round(places)).max())


def test_a_state_outside_of_attention_would_be_kept_whole(tmp_path: Path) -> None:
    import openvino
    from openvino import Type, opset13
    from openvino._offline_transformations import apply_make_stateful_transformation

    past, more = opset13.parameter([1, 4], Type.f32), opset13.parameter([1, 4], Type.f32)
    both = opset13.add(past, more)
    outputs = [opset13.result(both), opset13.result(opset13.multiply(both, both))]
    model = openvino.Model(outputs, [past, more], "sum")
    for port, name in ((model.inputs[0], "past"), (model.outputs[0], "present"), (model.outputs[1], "square")):
        port.set_names({name})
    apply_make_stateful_transformation(model, {"past": "present"})
    openvino.save_model(model, tmp_path / "sum.xml")
    with pytest.raises(Rejected, match="1 of 1 states are not inside"):
        check_rounded(compiled_apart(tmp_path / "sum.xml", {"KV_CACHE_PRECISION": "u8"}))


def test_rows_do_not_depend_on_their_company(tmp_path: Path) -> None:
    wrapper, both = wrapped("llama"), prompts("llama", lengths=(9, 9))
    session = opened(wrapper, INT8, tmp_path / "int8", example=both)
    together = session.forced(both, IDS)
    for row in range(2):
        alone = session.forced({name: array[row : row + 1] for name, array in both.items()}, IDS[row : row + 1])
        assert np.allclose(alone[0], together[row], atol=1e-3)


def test_bf16_with_it(tmp_path: Path) -> None:
    wrapper, arrays = wrapped("llama"), prompts("llama", lengths=(9, 4))
    wanted = uncached(wrapper, arrays, IDS)
    config = TorchConfig(precision="bf16", kv_cache="int8")
    got = opened(wrapper, config, tmp_path / "model", example=arrays).forced(arrays, IDS)
    assert overall_cosine(wanted, got) > 0.99


@pytest.mark.parametrize("config", [INT8, OpenVinoConfig(kv_cache="int8")], ids=lambda c: c.kind)
def test_a_model_that_writes_nothing_has_no_cache(config: Any, tmp_path: Path) -> None:
    wrapper = LogitsWrapper(torch.nn.Identity())
    ids = np.ones((1, 3), dtype=np.int64)
    with pytest.raises(Rejected, match="keeps no keys and values"):
        get_runtime(config.kind).export(
            wrapper, config, calibration=[{"input_ids": ids}], folder=tmp_path, cache=tmp_path
        )


def test_what_cannot_be_rounded_is_said(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="LinearAttentionLayer keeps more"):
        _in_8_bits(LinearAttentionLayer())
    arrays = prompts("llama", lengths=(5,))
    with pytest.raises(Rejected, match="keeps its cache in its own precision"):
        opened(wrapped("llama"), TorchConfig(compile=True, kv_cache="int8"), tmp_path / "model", example=arrays)
    assert len(int8_cache(wrapped("gemma3_text").hf.config).layers) == 3


def test_it_is_searched_over_and_is_no_set_up_of_the_original() -> None:
    for name in ("torch", "openvino"):
        found = generation_space(name, instructions=frozenset(), threads=2)
        kept = [r.runtime for r in recipes(found, techniques=["int8-cache"])]
        assert kept
        assert all(getattr(config, "kv_cache", None) == "int8" and "int8 cache" in config.label for config in kept)
        plain = recipes(found, techniques=["fp32"])
        assert not any("cache" in recipe.label for recipe in plain)
    made = Recipe(passes=(), runtime=INT8)
    assert read_recipe(made.to_dict()) == made
    trial = Trial(made.to_dict(), made.id, made.label, "screen", "ok", 1.0)
    assert not is_tuned_baseline(trial)
    plain_one = Recipe(passes=(), runtime=TorchConfig(attention="eager"))
    assert is_tuned_baseline(Trial(plain_one.to_dict(), plain_one.id, plain_one.label, "screen", "ok", 1.0))


@pytest.mark.parametrize(
    ("runtime", "name"),
    [
        ({"precision": "fp32"}, "fp32"),
        ({"precision": "fp32", "kv_cache": None}, "fp32"),
        ({"precision": "bf16", "kv_cache": "int8"}, "int8"),
        ({"precision": "int4-weights", "kv_cache": "int8"}, "int4-weights"),
    ],
)
def test_what_outputs_are_judged_as(runtime: dict[str, Any], name: str) -> None:
    assert judged_as(runtime) == name


def test_a_bundle_keeps_it(tmp_path: Path) -> None:
    bundle = language_bundle(
        saved(tiny("llama"), tmp_path / "model"), tmp_path / "bundle", task="text-generation",
        answers=Answers(most=4, timed=3, ends=(0,)), config=INT8,
    )  # fmt: skip
    with load(bundle) as model:
        assert model.manifest.recipe["runtime"]["kv_cache"] == "int8"
        assert model.precision == model.manifest.precision_ran == "fp32, int8 cache"
        assert model.predict(["the cat"])[0]["tokens"] >= 1
