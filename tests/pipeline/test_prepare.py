"""What is looked at before anything is built: that the model knows the tokens it will be given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hasten.pipeline.prepare import check_ids, processor_of
from hasten.records import InputError, Workload
from hasten.tasks import get_task
from hasten.tasks.examples import Example


def example(*ids: int) -> Example:
    return Example({"input_ids": np.array(ids, dtype=np.int64)})


def test_tokens_that_the_model_has_no_row_for() -> None:
    check_ids([example(0, 9), example()], words=10)
    check_ids([Example({"pixel_values": np.zeros(3)})], words=None)
    with pytest.raises(InputError, match=r"numbered 10 .* rows for 10 tokens"):
        check_ids([example(0, 10)], words=10)


def test_a_model_without_positions() -> None:
    facts: Any = type("Facts", (), {"max_length": -1})
    with pytest.raises(InputError, match="positions for -1 tokens"):
        processor_of(facts, get_task("text-classification"), Workload(), rows=None)
