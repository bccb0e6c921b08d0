"""Parity judges what was computed for real tokens: what stands in the place of padding is nobody's output."""

from __future__ import annotations

import numpy as np
import pytest

from hasten.runtimes.parity import judged, of_real_tokens, parity
from hasten.tasks import get_task

MASK = np.array([[1, 1, 1], [1, 0, 0]])
OUTPUTS = np.arange(12, dtype=np.float32).reshape(2, 3, 2)


def test_padding_is_left_out() -> None:
    found = of_real_tokens(OUTPUTS, {"attention_mask": MASK})
    assert np.array_equal(found, OUTPUTS[[0, 0, 0, 1], [0, 1, 2, 0]])


def test_shapes_that_do_not_fit_are_left_for_parity_to_name() -> None:
    short = OUTPUTS[:, :2]
    assert of_real_tokens(short, {"attention_mask": MASK}) is short
    task, batch = get_task("token-classification"), {"attention_mask": MASK}
    sides = [judged([one], [batch], task=task) for one in (OUTPUTS, short)]
    assert "shape" in str(parity(*sides, "fp32"))


def test_a_runtime_may_say_anything_of_padding_and_nothing_wrong_of_tokens() -> None:
    task, batch = get_task("question-answering"), {"attention_mask": MASK}
    for where, right in (((1, 2), True), ((1, 0), False)):
        other = OUTPUTS.copy()
        other[where] = 50.0
        wanted, got = (judged([one], [batch], task=task) for one in (OUTPUTS, other))
        assert (parity(wanted, got, "fp32") is None) == right


def test_outputs_of_a_whole_row_are_judged_whole() -> None:
    task = get_task("text-classification")
    (found,) = judged([OUTPUTS[0]], [{"attention_mask": MASK}], task=task)
    assert np.array_equal(found, OUTPUTS[0])


@pytest.mark.parametrize("name", ["language-modeling", "multiple-choice"])
def test_what_is_foretold_behind_a_text_is_not_compared(name: str) -> None:
    """Padding follows there in eager, and the first token in a runtime without padding."""
    mask = np.array([[1, 1, 1], [1, 1, 0]])
    outputs = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    other = outputs.copy()
    other[0, 2], other[1, 1:] = 99, 99
    batch, task = {"attention_mask": mask}, get_task(name)
    wanted, got = (judged([one], [batch], task=task) for one in (outputs, other))
    assert parity(wanted, got, "fp32") is None
    other[1, 0] = 99
    assert parity(wanted, judged([other], [batch], task=task), "fp32") is not None


def test_nothing_to_compare_is_not_agreement() -> None:
    one = np.ones((2, 1, 2), np.float32)
    side = judged([one], [{"attention_mask": np.ones((2, 1), np.int64)}], task=get_task("multiple-choice"))
    assert "no output to compare" in str(parity(side, side, "fp32"))
