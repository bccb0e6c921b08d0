"""Quantization-aware training: what comes out is on the grid, and loses less on it than what was only rounded."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_distill import rows, wrapper

from hasten.passes.calibration import Calibration
from hasten.passes.distillation import output_loss
from hasten.passes.fake_quant import fake_quantized, round_weight
from hasten.passes.matrices import encoder_matrices
from hasten.passes.qat import QatConfig, train_quantized
from hasten.records import InputError

Checkpoints = Callable[[str], Path]


@pytest.mark.parametrize("config", [QatConfig(epochs=1, batch=8), QatConfig(bits=4, group=32, epochs=1, batch=8)])
def test_the_weights_are_on_the_grid_and_nothing_else_stays(config: QatConfig, checkpoint: Checkpoints) -> None:
    teacher = wrapper(checkpoint("bert"))
    made = train_quantized(copy.deepcopy(teacher), config, Calibration(rows(), original=teacher))
    assert made.state_dict().keys() == teacher.state_dict().keys()
    for matrix in encoder_matrices(made, what="a test"):
        weight = matrix.linear.weight.detach()
        assert torch.allclose(round_weight(weight, bits=config.bits, group=config.group), weight, atol=1e-7)
        assert not matrix.linear._forward_pre_hooks
        assert isinstance(matrix.linear.weight, torch.nn.Parameter)


def test_training_on_the_grid_loses_less_there_than_rounding(checkpoint: Checkpoints) -> None:
    """Large weights, so that int4 hurts a random model at all; judged as it would run."""
    teacher = wrapper(checkpoint("bert"))
    with torch.no_grad():
        for matrix in encoder_matrices(teacher, what="a test"):
            matrix.linear.weight.mul_(20.0)
    given = Calibration(rows(), original=teacher)
    config = QatConfig(bits=4, group=32, epochs=20, batch=8, lr=2e-3, activations=None)
    made = train_quantized(copy.deepcopy(teacher), config, given)
    assert lost(made, teacher, given) < 0.7 * lost(copy.deepcopy(teacher), teacher, given)


def lost(model: Any, teacher: Any, given: Calibration) -> float:
    linears = [m.linear for m in encoder_matrices(model, what="a test")]
    with torch.no_grad(), fake_quantized(linears, bits=4, group=32, per=None):
        batches = [b for b, _ in given.batches(batch=8)]
        return sum(float(output_loss(model(**b), teacher(**b), says=teacher.says, temperature=1.0)) for b in batches)


def test_four_bits_need_groups_and_eight_have_none() -> None:
    for wrong in ({"bits": 4}, {"bits": 8, "group": 32}):
        with pytest.raises(InputError, match="to do"):
            QatConfig(**wrong)  # type: ignore[arg-type]
