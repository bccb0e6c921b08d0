"""Tiny models and calibrations that the tests of pruning share."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tiny_models import IMAGES, SIDE, language_model, tiny_config

from hasten.models.reshape import open_model, save_model
from hasten.passes.calibration import Calibration
from hasten.passes.matrices import encoder_matrices
from hasten.passes.units import Units
from hasten.runtimes.onnx_int4 import packed
from hasten.tasks.wrappers import ImageWrapper, LogitsWrapper, NextTokenWrapper, Wrapper


def tiny(family: str = "bert", *, seed: int = 0, spread: float = 1.0, **changes: Any) -> Wrapper:
    """A random classifier of 4 layers, 4 heads and 64 neurons; ``spread`` multiplies the encoder's matrices."""
    from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

    torch.manual_seed(seed)
    config = tiny_config(family, **changes)
    if family in IMAGES:
        model: Wrapper = ImageWrapper(AutoModelForImageClassification.from_config(config)).eval()
    else:
        model = LogitsWrapper(AutoModelForSequenceClassification.from_config(config)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "layer" in name and weight.ndim == 2:
                weight *= spread
    return model


def rows_for(model: Any, *, count: int = 24, labels: bool = True, seed: int = 0) -> Calibration:
    """Rows of 3 to 13 tokens, or images, with what the model says for labels."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for length in rng.integers(3, 14, size=count):
        if isinstance(model, ImageWrapper):
            rows.append({"pixel_values": rng.normal(size=(1, 3, SIDE, SIDE)).astype(np.float32)})
            continue
        rows.append({"input_ids": rng.integers(4, 60, (1, length)), "attention_mask": np.ones((1, length), np.int64)})
    given = Calibration(rows, seed=seed)
    return Calibration(rows, targets=outputs(model, given).argmax(dim=1).numpy() if labels else None, seed=seed)


def outputs(model: Any, given: Calibration) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([model(**batch) for batch, _ in given.batches(batch=8)])


def units_of(model: Any, *, stacks: Literal["one", "several"] = "one") -> Units:
    return Units(model, kind="test", what="a test", stacks=stacks)


def counts(model: Any) -> tuple[list[int], list[int]]:
    """Heads (groups of them, where they share a key) and neurons of every layer."""
    units = units_of(model)
    return [parts.groups for parts in units.attention], [parts.neurons for parts in units.ffn]


def macs(model: Any, given: Calibration) -> float:
    units = units_of(model)
    return units.costs(given).of(units.ones())


def check_costs(model: Any, given: Calibration, *, head: int) -> None:
    """A unit's cost is a difference: by torch's own counter (two FLOPs a MAC), on one row under eager attention."""
    from torch.utils.flop_counter import FlopCounterMode

    def flops(of: Any) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            of(**given.head(1)[0])
        return int(counter.get_total_flops())

    cost = units_of(model).costs(given)
    less_head, less_neuron = copy.deepcopy(model), copy.deepcopy(model)
    masks = units_of(model).ones()
    masks.heads[1][head] = 0
    units_of(less_head).keep(masks)
    masks = units_of(model).ones()
    masks.neurons[1][:10] = 0
    units_of(less_neuron).keep(masks)
    assert flops(model) - flops(less_head) == 2 * cost.head
    assert flops(model) - flops(less_neuron) == 2 * 10 * cost.neuron


def check_int4_grid(model: Any, *, group: int) -> None:
    """A runtime that packs the matrices into int4 finds the same weights again."""
    for matrix in encoder_matrices(model, what="a test"):
        weight = matrix.linear.weight.detach().numpy()
        codes, scales = packed(weight, group=group)
        values = np.stack([(codes & 15).astype(np.float32) - 8, (codes >> 4).astype(np.float32) - 8], axis=-1)
        found = values.reshape(len(weight), -1, group) * scales.reshape(len(weight), -1, 1)
        np.testing.assert_array_equal(found.reshape(len(weight), -1)[:, : weight.shape[1]], weight)


def decoder(family: str = "llama", *, seed: int = 0, **changes: Any) -> NextTokenWrapper:
    """A random language model of 3 layers, 4 heads (most often 2 groups) of 8 and 48 neurons."""
    return NextTokenWrapper(language_model(family, seed=seed, **changes)).eval()


def texts_for(*, count: int = 24, targets: bool = True, seed: int = 0) -> Calibration:
    """Rows of 3 to 13 tokens for a decoder; every token counts."""
    rng = np.random.default_rng(seed)
    ids = [rng.integers(4, 60, (1, length)) for length in rng.integers(3, 14, size=count)]
    rows = [{"input_ids": own, "attention_mask": np.ones_like(own)} for own in ids]
    return Calibration(rows, targets=[own[0] for own in ids] if targets else None, seed=seed)


@torch.inference_mode()
def said(model: Any, given: Calibration) -> torch.Tensor:
    """Log-probabilities of all tokens but each row's first."""
    return torch.cat([model.rows(model(**batch), batch) for batch, _ in given.batches(batch=8)])


def again(model: NextTokenWrapper, folder: Path) -> NextTokenWrapper:
    """The decoder as it comes back from a folder."""
    save_model(model.hf, folder)
    return NextTokenWrapper(open_model(type(model.hf), folder, attention="sdpa", dtype=torch.float32)).eval()
