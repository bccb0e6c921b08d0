"""Models that were cut unevenly compute on every runtime what they compute in eager PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from native_here import native_only
from tiny_models import tiny_config

from hasten.measure.host import instruction_sets
from hasten.models import adapter_for
from hasten.models.bert import BERT
from hasten.models.prefix import attach_prefixes
from hasten.models.surgery import keep_heads, keep_layers, keep_neurons
from hasten.runtimes import RUNTIMES, get_runtime
from hasten.runtimes.parity import parity
from hasten.tasks.wrappers import LogitsWrapper

NAMES = ("input_ids", "attention_mask", "token_type_ids")
VNNI = instruction_sets() & {"avx512_vnni", "avx_vnni", "amx_int8"}
UNTRIED = {("executorch", "fp32"), ("executorch", "int8")}
OFFERED: list[Any] = [
    config
    for name in RUNTIMES
    for config in get_runtime(name).space(instructions=frozenset({"avx2"} | VNNI), threads=1)
    if not getattr(config, "compile", False)
]
# One of each precision: the others differ in what has nothing to do with shapes. Families differ in names alone.
# Lowering for ExecuTorch takes half a minute a layer: its int4 alone, which has int8 matrices and fp32 ones beside it.
ONE_EACH = {(c.kind, c.precision): c for c in reversed(OFFERED) if (c.kind, c.precision[:4]) not in UNTRIED}.values()


def marked(config: Any, *before: str) -> Any:
    marks = {"executorch": [pytest.mark.slow], "native": [native_only]}
    return pytest.param(*before, config, marks=marks.get(config.kind, []))


def depth(config: Any) -> int:
    return 2 if config.kind == "executorch" else 3


# It says so: its keys are those of the row's own tokens.
PREFIXED = [marked(c) for c in ONE_EACH if c.kind != "native"]
CASES = [marked(c, "bert") for c in ONE_EACH] + [marked(c, "distilbert") for c in ONE_EACH if c.kind == "onnxruntime"]


def cut(family: str, *, layers: int) -> LogitsWrapper:
    """So many layers of the three of 3, 1 and 4 heads and of 24, 64 and 40 neurons."""
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    model = LogitsWrapper(AutoModelForSequenceClassification.from_config(tiny_config(family))).eval()
    adapter = adapter_for(family)
    assert adapter is not None
    keep_layers(model.hf, adapter, [0, 1, 3][:layers])
    units: list[tuple[Sequence[int], int]] = [([0, 2, 3], 24), ([1], 64), (range(4), 40)]
    for layer, (heads, neurons) in zip(adapter.layers(model.hf), units[:layers], strict=True):
        keep_heads(adapter.attention(layer), list(heads))
        keep_neurons(adapter.ffn(layer), list(range(neurons)))
    return _louder(model)


def prefixed(*, layers: int) -> LogitsWrapper:
    """A BERT whose tokens also attend to three learnt ones, in layers of 3, 1 and 4 heads."""
    model = cut("bert", layers=layers)
    layers = BERT.layers(model.hf)
    shapes = [(2, BERT.attention(layer).heads, 3, BERT.attention(layer).head_dim) for layer in layers]
    attach_prefixes(model.hf, [layer.attention.self for layer in layers], [torch.randn(shape) for shape in shapes])
    return model


def _louder(model: LogitsWrapper) -> LogitsWrapper:
    """Random tiny models say next to nothing otherwise."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "layer." in name and weight.ndim == 2:
                weight *= 6.0
    return model


def rows(count: int, names: tuple[str, ...]) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    made = []
    for length in rng.integers(3, 20, size=count):
        row = {"input_ids": rng.integers(4, 60, (1, length)), "attention_mask": np.ones((1, length), np.int64)}
        made.append({n: row.get(n, np.zeros((1, length), np.int64)) for n in names})
    return made


@pytest.mark.parametrize(("family", "config"), CASES, ids=lambda x: x if isinstance(x, str) else f"{x.kind} {x.label}")
def test_unequal_layers(family: str, config: Any, tmp_path: Path) -> None:
    check_parity(cut(family, layers=depth(config)), config, tmp_path, names=NAMES[: 3 if family == "bert" else 2])


@pytest.mark.parametrize("config", PREFIXED, ids=lambda c: f"{c.kind} {c.label}")
def test_prefixes(config: Any, tmp_path: Path) -> None:
    check_parity(prefixed(layers=depth(config)), config, tmp_path, names=NAMES)


def check_parity(model: LogitsWrapper, config: Any, folder: Path, *, names: tuple[str, ...]) -> None:
    """The export computes what eager does, at many lengths."""
    room, given = get_runtime(config.kind), rows(12, names)
    with torch.inference_mode():
        wanted = [model(**{k: torch.from_numpy(v) for k, v in row.items()}).numpy() for row in given]
    for name in ("model", "cache"):
        (folder / name).mkdir()
    room.export(model, config, calibration=given, folder=folder / "model", cache=folder / "cache")
    session = room.open(folder / "model", config, threads=1, cores=(0,))
    assert parity(wanted, [session.run(row) for row in given], config.precision) is None
