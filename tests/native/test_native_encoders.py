"""The engine on real lowerings: eager in fp32, the numpy reference in integers, in every family and with every head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoder_cases import (
    FAMILIES,
    HEADS,
    INT8,
    adapter_to,
    batch_of,
    eager,
    exported,
    opened,
    ragged,
    run,
    typed,
    wrapped,
)
from native_here import native_only
from native_reference import expected

from hasten.models.surgery import keep_heads, keep_layers, keep_neurons
from hasten.passes.fake_quant import fake_quantized
from hasten.passes.matrices import encoder_matrices
from hasten.runtimes.native import NativeConfig
from hasten.runtimes.native_encoders import lowered
from hasten.tasks.wrappers import Wrapper

pytestmark = native_only
# Sums in another order and polynomials for exp, erf and tanh: a few parts in a million of outputs of order one.
FP32_BOUND = 2e-5
# A number between two steps of 255 may fall to either side after other last digits: that moves what depends on it.
STEP = 0.02


def outputs(wrapper: Wrapper, folder: Path, config: NativeConfig, batch: dict[str, Any], *, threads: int = 1) -> Any:
    exported(wrapper, folder, config, batch)
    session = opened(folder, config, threads=threads)
    try:
        return run(session, wrapper, batch)
    finally:
        session.close()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_fp32_is_eager(family: str, head: str, tmp_path: Path) -> None:
    wrapper, batch = wrapped(family, head), batch_of(family)
    found = outputs(wrapper, tmp_path, NativeConfig(), batch)
    assert found.dtype == np.float32
    assert np.allclose(found, eager(wrapper, batch), atol=FP32_BOUND)


@pytest.mark.parametrize("head", ["classes", "tags", "mean, normalized"])
@pytest.mark.parametrize("family", FAMILIES)
def test_integers_are_those_of_the_reference(family: str, head: str, tmp_path: Path) -> None:
    wrapper, batch = wrapped(family, head), batch_of(family)
    ids, lengths, types = ragged(batch)
    for config in (INT8, NativeConfig(precision="int4"), NativeConfig(precision="int8-dynamic", embeddings=True)):
        program = lowered(wrapper, precision=config.precision, group=config.group, embeddings=config.embeddings).program
        wanted = expected(program, ids, lengths=lengths, types=types)
        found = outputs(wrapper, tmp_path / config.label, config, batch)
        assert np.abs(found - wanted).max() <= STEP
        assert np.median(np.abs(found - wanted)) <= FP32_BOUND


def test_int8_is_what_eager_gives_with_rounded_matrices(tmp_path: Path) -> None:
    wrapper, batch = wrapped("bert", "tags"), batch_of("bert")
    with fake_quantized([m.linear for m in encoder_matrices(wrapper, what="a test")], bits=8, per="token"):
        wanted = eager(wrapper, batch)
    found = outputs(wrapper, tmp_path, INT8, batch)
    assert np.abs(found - wanted).max() <= STEP
    assert np.median(np.abs(found - wanted)) < 0.2 * np.median(np.abs(eager(wrapper, batch) - wanted))


def test_bf16_is_near_eager(tmp_path: Path) -> None:
    wrapper, batch = wrapped("bert", "tags"), batch_of("bert")
    found = outputs(wrapper, tmp_path, NativeConfig(precision="bf16"), batch)
    assert 0 < np.abs(found - eager(wrapper, batch)).max() < 0.05


@pytest.mark.parametrize("precision", ["fp32", "int8-dynamic", "int5", "int4"])
@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_cut_layers(family: str, precision: Any, tmp_path: Path) -> None:
    """3, 1 and no heads; 24, 64 and no neurons."""
    wrapper, batch = wrapped(family), batch_of(family)
    adapter = adapter_to(wrapper)
    keep_layers(wrapper.hf, adapter, [0, 1, 3])
    for layer, (heads, neurons) in zip(adapter.layers(wrapper.hf), [([0, 2, 3], 24), ([1], 64), ([], 0)], strict=True):
        keep_heads(adapter.attention(layer), heads)
        keep_neurons(adapter.ffn(layer), list(range(neurons)))
    config = NativeConfig(precision=precision)
    ids, lengths, types = ragged(batch)
    program = lowered(wrapper, precision=precision, group=32, embeddings=False).program
    wanted = expected(program, ids, lengths=lengths, types=types)
    assert np.abs(outputs(wrapper, tmp_path, config, batch) - wanted).max() <= STEP


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8-dynamic", "int5", "int4"])
@pytest.mark.parametrize("head", ["classes", "span"])
def test_a_row_among_others_gives_what_it_gives_alone(head: str, precision: Any, threads: int, tmp_path: Path) -> None:
    """To the last bit: a row's products, norms and sums know nothing of other rows."""
    wrapper, batch = wrapped("bert", head), batch_of("bert")
    config = NativeConfig(precision=precision)
    exported(wrapper, tmp_path, config, batch)
    session = opened(tmp_path, config, threads=threads)
    together = session.run(batch)
    for number, length in enumerate(batch["attention_mask"].sum(axis=1)):
        alone = session.run({name: array[number : number + 1, :length] for name, array in batch.items()})
        whole = together[number] if alone.ndim == 2 else together[number, :length]
        assert np.array_equal(alone[0], whole)


def test_padding_is_computed_nowhere_and_its_outputs_are_zeros(tmp_path: Path) -> None:
    wrapper, batch = wrapped("roberta", "tags"), batch_of("roberta")
    assert not typed("roberta")
    exported(wrapper, tmp_path, INT8, batch)
    session = opened(tmp_path, INT8)
    found = session.run(batch)
    padding = batch["attention_mask"] == 0
    assert (found[padding] == 0).all()
    assert (found[~padding] != 0).any(axis=-1).all()
    other = {**batch, "input_ids": np.where(padding, 60, batch["input_ids"])}
    assert np.array_equal(session.run(other), found)
