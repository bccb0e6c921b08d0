"""Passes that look at rows say so when there is nothing to look at; the others do not ask."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pass_settings import SETTINGS
from unit_cases import decoder, outputs, rows_for, tiny

from hasten.passes import run_pass
from hasten.passes.calibration import Calibration
from hasten.passes.llm_int8 import LlmInt8Config
from hasten.passes.smooth_quant import SmoothQuantConfig
from hasten.records import Config, InputError

# They look at weights alone, or at places in a list.
BLIND = {"layers", "magnitude", "gobo", "rtn", "hqq", "gqa"}
# They change decoders alone.
DECODING = {"slice", "gqa"}
CASES = [(kind, number) for kind, found in SETTINGS.items() for number in range(len(found))]


def looks(config: Config) -> bool:
    by = getattr(config, "by", "even")
    alone = config.kind == "random_units" and getattr(config, "which", "both") != "both"
    return (config.kind not in BLIND or by != "even") and not alone


def tokenless(count: int) -> list[dict[str, np.ndarray]]:
    return [{"input_ids": np.ones((1, 1), np.int64), "attention_mask": np.zeros((1, 1), np.int64)}] * count


@pytest.mark.parametrize(("kind", "number"), CASES)
def test_nothing_to_look_at_is_said(kind: str, number: int) -> None:
    config = SETTINGS[kind][number]
    for rows, words in (([], "has no rows"), (tokenless(40), "none of the .* has a token")):
        model, original = (decoder("llama"), decoder("llama")) if kind in DECODING else (tiny(spread=4.0), tiny())
        given = Calibration(rows, original=original, targets=np.zeros(len(rows), np.int64))
        if looks(config):
            with pytest.raises(InputError, match=words):
                run_pass(model, config, given)
        else:
            run_pass(model, config, given)


@pytest.mark.parametrize("config", [SmoothQuantConfig(), LlmInt8Config()], ids=lambda c: c.kind)
def test_a_batch_of_empty_texts_among_others_changes_nothing(config: Config) -> None:
    """Short rows come first: these fill a batch of their own."""
    first, second = tiny(spread=4.0), tiny(spread=4.0)
    given = rows_for(first, labels=False)
    run_pass(first, config, given)
    run_pass(second, config, replace(given, rows=[*given.rows, *tokenless(32)]))
    np.testing.assert_allclose(outputs(first, given).numpy(), outputs(second, given).numpy(), atol=1e-5)
