"""Int4 graphs compute what the grid says; what must stay fp32 stays fp32, and what cannot be found is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_config

from hasten.models.precision import belongs_to, keep_fp32
from hasten.passes.fake_quant import fake_quantized, round_weight
from hasten.passes.matrices import encoder_matrices
from hasten.records import Rejected
from hasten.runtimes import get_runtime
from hasten.runtimes.onnx_int4 import packed
from hasten.runtimes.onnxruntime import OnnxRuntimeConfig
from hasten.runtimes.openvino import OpenVinoConfig
from hasten.tasks.wrappers import LogitsWrapper

KEPT = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense", "output.dense"]


def wrapper() -> LogitsWrapper:
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    small = tiny_config("bert")
    small.num_hidden_layers = 2
    return LogitsWrapper(AutoModelForSequenceClassification.from_config(small)).eval()


def rows(count: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 14, size=count)
    return [{"input_ids": rng.integers(4, 60, (1, n)), "attention_mask": np.ones((1, n), np.int64)} for n in lengths]


def exported(config: Any, model: LogitsWrapper, folder: Path) -> Path:
    for name in ("model", "cache"):
        (folder / name).mkdir()
    get_runtime(config.kind).export(
        model, config, calibration=rows(16), folder=folder / "model", cache=folder / "cache"
    )
    return folder / "model"


def outputs(config: Any, folder: Path) -> np.ndarray[Any, Any]:
    session = get_runtime(config.kind).open(folder, config, threads=1, cores=(0,))
    return np.concatenate([session.run(row) for row in rows(16)])


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.integers(1, 80), st.integers(0, 1000))
def test_codes_are_the_grid_that_training_uses(out: int, inputs: int, seed: int) -> None:
    weight = torch.randn(out, inputs, generator=torch.Generator().manual_seed(seed))
    codes, scales = packed(weight.numpy(), group=32)
    groups = -(-inputs // 32)
    assert codes.shape == (out, groups, 16)
    low, high = (codes & 15).astype(np.float32) - 8, (codes >> 4).astype(np.float32) - 8
    values = np.stack([low, high], axis=-1).reshape(out, groups, 32) * scales.reshape(out, groups, 1)
    found = values.reshape(out, -1)
    np.testing.assert_allclose(found[:, :inputs], round_weight(weight, bits=4, group=32).numpy(), atol=1e-6)
    assert not found[:, inputs:].any()


def test_int4_computes_what_the_grid_says_and_is_smaller(tmp_path: Path) -> None:
    model, config = wrapper(), OnnxRuntimeConfig(precision="int4", fusion=False)
    folder = exported(config, model, tmp_path)
    linears = [m.linear for m in encoder_matrices(model, what="a test")]
    with fake_quantized(linears, bits=4, group=32, per=None), torch.inference_mode():
        wanted = np.concatenate([model(**{k: torch.from_numpy(v) for k, v in row.items()}).numpy() for row in rows(16)])
    # Only the activations' 8 bits are in between.
    assert np.abs(outputs(config, folder) - wanted).max() < 0.05 * np.abs(wanted).max()
    kinds = [node.op_type for node in onnx.load(folder / "model.onnx").graph.node]
    assert kinds.count("MatMulNBits") == len(linears)


@pytest.mark.parametrize(
    "config",
    [
        OnnxRuntimeConfig(precision="int8-dynamic"),
        OnnxRuntimeConfig(precision="int8-dynamic", fusion=False),
        OnnxRuntimeConfig(precision="int8-static", fusion=False),
        OnnxRuntimeConfig(precision="int4", fusion=False),
    ],
    ids=lambda config: config.label,
)
def test_onnx_leaves_in_fp32_what_must_stay(config: OnnxRuntimeConfig, tmp_path: Path) -> None:
    model = wrapper()
    keep_fp32(model.hf, [f"bert.encoder.layer.1.{name}" for name in KEPT])
    graph = onnx.load(exported(config, model, tmp_path) / "model.onnx").graph
    # A product with a constant matrix that is still a plain one; two of the attention's have none.
    constants = {i.name for i in graph.initializer}
    plain = [n for n in graph.node if n.op_type in ("MatMul", "Attention") and n.input[1] in constants]
    plain = [n for n in plain if "Gemm" not in n.name]  # the head
    assert len(plain) == (3 if config.fusion else 5), [n.name for n in plain]
    assert all("layer.1" in n.name or n.op_type == "Attention" for n in plain)


def test_openvino_leaves_in_fp32_what_must_stay(tmp_path: Path) -> None:
    import openvino

    model = wrapper()
    counted = {}
    for number, kept in enumerate([[], KEPT]):
        keep_fp32(model.hf, [f"bert.encoder.layer.1.{name}" for name in kept])
        (tmp_path / str(number)).mkdir()
        folder = exported(OpenVinoConfig(precision="int8"), model, tmp_path / str(number))
        found = openvino.Core().read_model(folder / "model.xml").get_ops()
        counted[len(kept)] = sum(str(op.get_output_element_type(0)) == "<Type: 'int8_t'>" for op in found)
    assert counted[0] - counted[5] == 5, counted


@pytest.mark.parametrize(
    "config", [OnnxRuntimeConfig(precision="int8-dynamic"), OpenVinoConfig(precision="int8")], ids=lambda c: c.kind
)
def test_what_cannot_be_found_is_refused(config: Any, tmp_path: Path) -> None:
    model = wrapper()
    keep_fp32(model.hf, ["bert.encoder.layer.7.output.dense"])
    with pytest.raises(Rejected, match=r"layer\.7\.output\.dense"):
        exported(config, model, tmp_path)


def test_names_of_operators() -> None:
    name = "bert.encoder.layer.1.output.dense"
    assert belongs_to("/hf/bert/encoder/layer.1/output/dense/MatMul", [name])
    assert belongs_to("__module.hf.bert.encoder.layer.1.output.dense/aten::linear/MatMul", [name])
    assert not belongs_to("/hf/bert/encoder/layer.11/output/dense/MatMul", [name])
    assert not belongs_to("/hf/bert/encoder/layer.1/attention/output/dense/MatMul", [name])
