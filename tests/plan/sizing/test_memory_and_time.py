"""Memory and passes: known models to the byte or to the percent, and rooflines that no figure breaks."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.plan.sizing.fit import LayerFit, Work, fit_layers, fit_memory
from hasten.plan.sizing.hardware import PRECISIONS, read_devices
from hasten.plan.sizing.memory import Place, cache_bytes, weights_bytes
from hasten.plan.sizing.roofline import Engine, speculated_s, step_of, tokens_a_step, work_of
from hasten.plan.sizing.shapes import ModelShape, of_parameters, read_models
from hasten.records import InputError

MODELS, DEVICES = read_models(), read_devices()
LLAMA, MIXTRAL, BERT = MODELS["llama-3.1-8b"], MODELS["mixtral-8x7b"], MODELS["bert-base-uncased"]


@pytest.mark.parametrize("shape", MODELS.values(), ids=lambda s: s.name)
def test_shapes_count_to_what_is_published(shape: ModelShape) -> None:
    counted = shape.layer_weights + shape.embedding_weights
    assert counted == pytest.approx(shape.parameters, rel=0.03)


@pytest.mark.parametrize("size", [7e9, 70e9, 350e6, 1.3e9, 400e9])
def test_a_bare_size_becomes_a_usual_shape(size: float) -> None:
    shape = of_parameters(size)
    assert shape.total == pytest.approx(size, rel=0.05)
    assert shape.heads % shape.kv_heads == 0
    assert 40 <= shape.hidden / shape.layers <= 170


def test_a_size_out_of_range_is_refused() -> None:
    with pytest.raises(InputError, match="from 10M to 10T"):
        of_parameters(10.0)


def test_caches_are_as_known() -> None:
    # Llama-3-8B: 2 x 32 layers x 8 heads x 128 x 2 bytes = 128 KiB a token.
    assert cache_bytes(LLAMA, context=1, sequences=1, bits=16).value == 131_072
    assert cache_bytes(LLAMA, context=8192, sequences=4, bits=8).value == 131_072 / 2 * 8192 * 4
    assert cache_bytes(BERT, context=512, sequences=8, bits=16).value == 0
    mistral = MODELS["mistral-7b-v0.1"]
    assert mistral.window == 4096
    assert mistral.cached_values(32_768) == mistral.cached_values(4096)
    gemma = MODELS["gemma-3-12b"]
    assert gemma.cached_values(32_768) < 0.25 * replace(gemma, window=0).cached_values(32_768)


def test_weights_are_as_known() -> None:
    assert weights_bytes(LLAMA, "bf16").value == pytest.approx(16.06e9, rel=0.01)
    assert weights_bytes(MIXTRAL, "int4").value == pytest.approx(26.4e9, rel=0.05)
    assert weights_bytes(BERT, "fp32").value == pytest.approx(438e6, rel=0.02)


@given(st.sampled_from(sorted(MODELS)), st.sampled_from(sorted(DEVICES)), st.sampled_from(PRECISIONS))
def test_what_is_said_to_fit_fits_and_one_more_does_not(model: str, device: str, precision: str) -> None:
    place = Place(MODELS[model], DEVICES[device], precision)
    context = min(1024, place.shape.max_context or 1024)
    batch = place.largest_batch(context=context)
    if batch:
        assert place.needed(context=context, sequences=batch).total <= place.room_bytes
    assert place.needed(context=context, sequences=batch + 1).total > place.room_bytes
    longest = place.largest_context()
    assert longest <= (place.shape.max_context or longest)
    small = replace(place, limit_bytes=place.needed(context=context, sequences=1).total * 0.99)
    assert small.largest_batch(context=context) == 0


def test_a_draft_and_copied_key_heads_are_counted() -> None:
    place = Place(MODELS["llama-3.1-70b"], DEVICES["h100"], "bf16", 4)
    alone = place.needed(context=1000, sequences=10)
    drafted = replace(place, draft=MODELS["llama-3.2-1b"]).needed(context=1000, sequences=10)
    assert drafted.weights.value - alone.weights.value == weights_bytes(MODELS["llama-3.2-1b"], "bf16").value
    assert drafted.cache.value > alone.cache.value
    few = Place(MODELS["qwen2.5-1.5b"], DEVICES["h100"], "bf16", 4)  # two key heads on four devices
    assert (
        few.needed(context=1000, sequences=1).cache.value
        == 2 * replace(few, devices=1).needed(context=1000, sequences=1).cache.value
    )


@given(
    st.sampled_from(sorted(MODELS)), st.sampled_from(sorted(DEVICES)), st.sampled_from(PRECISIONS),
    st.integers(1, 64), st.integers(16, 4096),
)  # fmt: skip
def test_no_pass_is_faster_than_the_hardware(model: str, device: str, precision: str, rows: int, tokens: int) -> None:
    place = Place(MODELS[model], DEVICES[device], precision)
    if not place.device.supports(precision):
        return
    engine = Engine(place)
    ideal = replace(engine, ideal=True)
    assert engine.prefill_s(tokens, sequences=rows) >= ideal.prefill_s(tokens, sequences=rows) > 0
    if place.shape.kind != "encoder":
        step = ideal.step_s(sequences=rows, context=tokens)
        assert engine.step_s(sequences=rows, context=tokens) >= step
        assert step >= ideal.step_s(sequences=1, context=tokens) * 0.999


def test_decoding_reads_all_weights_once_a_step() -> None:
    h200 = DEVICES["h200"]
    ideal = Engine(Place(LLAMA, h200, "bf16"), ideal=True)
    read = 2 * (LLAMA.layer_weights + LLAMA.head_weights)
    assert ideal.step_s(sequences=1, context=1) == pytest.approx(read / 4.8e12, rel=0.02)
    # Eight experts, two used: one sequence reads a quarter of them, many read all.
    few, many = (step_of(MIXTRAL, n, 1, 2.0).weights for n in (1, 64))
    assert few < 0.35 * many


def test_prefill_counts_two_operations_a_weight_and_token() -> None:
    work = work_of(LLAMA, tokens=1000, sequences=1)
    assert work.ops == pytest.approx(2 * 6.98e9 * 1000, rel=0.03)
    assert work_of(BERT, tokens=128, sequences=1).ops == pytest.approx(2 * 85e6 * 128, rel=0.05)


def test_a_seq2seq_encodes_and_decodes_with_its_own_halves() -> None:
    t5 = MODELS["t5-base"]
    whole = work_of(t5, tokens=1, sequences=1).weights + step_of(t5, 1, 1, 2.0).weights
    assert whole == pytest.approx(t5.layer_weights)
    near, far = (step_of(t5, 1, 10, 2.0, source=n) for n in (10, 500))
    assert far.cache_bytes > near.cache_bytes
    assert far.ops > near.ops


def test_more_devices_help_but_not_by_their_number() -> None:
    one, four = (Engine(Place(MODELS["llama-3.1-70b"], DEVICES["h100"], "bf16", n)) for n in (1, 4))
    gain = one.step_s(sequences=1, context=1000) / four.step_s(sequences=1, context=1000)
    assert 1.5 < gain < 4.0


def test_speculation_yields_leviathans_tokens() -> None:
    assert tokens_a_step(0.0, 5) == 1.0
    assert tokens_a_step(1.0, 5) == 6.0
    assert tokens_a_step(0.8, 4) == pytest.approx(3.3616)
    target = Engine(Place(MODELS["llama-3.1-70b"], DEVICES["h100"], "bf16", 4))
    draft = Engine(Place(MODELS["llama-3.2-1b"], DEVICES["h100"], "bf16"))
    plain = target.step_s(sequences=1, context=1000)
    assert speculated_s(target, draft, sequences=1, context=1000, drafted=4, acceptance=0.8) < plain
    assert speculated_s(target, draft, sequences=1, context=1000, drafted=4, acceptance=0.0) > plain


def test_a_fit_finds_the_costs_that_points_were_made_of() -> None:
    costs = LayerFit(3e-4, 5e-5, 2e-12, 1e-11, 3e-10, 4e-10, 0.0, 0)
    works = [
        Work(1, layers, 2.0 * weights * rows, weights, 12.0 * layers * rows**2, rows * 512.0 * layers)
        for layers, weights in ((2, 4e6), (4, 2e6), (6, 4e7), (1, 1e7))
        for rows in (8, 64, 256)
    ]
    found = fit_layers([(w.weights, w, costs.seconds(w)) for w in works])
    other = Work(1, 12, 2.0 * 85e6 * 128, 85e6, 12.0 * 12 * 128**2, 128 * 768.0 * 12)
    assert found.seconds(other) == pytest.approx(costs.seconds(other), rel=0.05)
    assert found.error < 0.05
    with pytest.raises(InputError, match="at least 8"):
        fit_layers([("one", works[0], 1.0)])
    memory = fit_memory([(f, a, 1e8 + 2 * f + 3 * a) for f, a in ((1e7, 1e6), (1e8, 1e6), (1e7, 1e8), (5e7, 5e7))])
    assert (memory.base, memory.file, memory.activations) == pytest.approx((1e8, 2.0, 3.0), rel=0.02)
