"""How long passes take, with a clock that only forward passes move: predictions, rows that fit, and where they end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pass_settings import SETTINGS
from torch import nn
from unit_cases import rows_for, tiny

from hasten.passes import PASSES, KPruneConfig, LayersConfig, MagnitudeUnitsConfig, configs, prune_kprune, run_pass
from hasten.passes.gptq import GptqConfig
from hasten.passes.pace import FEWEST_ROWS, ended_by, fewest_rows, forward_s, pace, work_of
from hasten.records import Config, Rejected

DEPTH = 4
LOOK_ROWS = 1 + 2 + 32  # what a prediction takes


class SlowModel:
    """Every layer takes ``row_s / DEPTH`` seconds a row, of a clock that nothing else moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, row_s: float) -> None:
        self.now, self.row_s = 100.0, row_s
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    @contextmanager
    def watching(self, model: Any) -> Iterator[None]:
        hooks = [layer.register_forward_hook(self._pass) for layer in model.hf.base_model.encoder.layer]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _pass(self, _module: nn.Module, inputs: Any, _output: Any) -> None:
        self.now += self.row_s / DEPTH * len(inputs[0])


def test_every_pass_that_looks_at_rows_has_a_prediction() -> None:
    for kind, entry in PASSES.items():
        for config in SETTINGS[kind]:
            rows = getattr(config, "rows", None)
            if entry.step != "recovery" and rows is not None:
                (most, forwards), *_ = work_of(config, depth=DEPTH)
                assert most == rows
                assert forwards >= 1, kind
    assert not work_of(MagnitudeUnitsConfig(), depth=DEPTH)
    assert not work_of(LayersConfig(count=2), depth=DEPTH)
    assert (
        work_of(LayersConfig(count=2, by="influence"), depth=DEPTH)[0][1]
        < work_of(LayersConfig(count=2, by="loss"), depth=DEPTH)[0][1]
    )


def test_a_forward_pass_is_timed_on_rows_of_mean_length(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    slow = SlowModel(monkeypatch, 0.001)
    given = rows_for(model, count=100)
    with slow.watching(model):
        assert forward_s(model, given, rows=100) == pytest.approx(0.001)
        assert slow.now == pytest.approx(100 + LOOK_ROWS * 0.001)
        slow.row_s = 1.0
        before = slow.now
        assert forward_s(model, given, rows=100) == pytest.approx(1.0)
        assert slow.now == pytest.approx(before + 3), "where two rows take long, a batch is not tried"


def test_what_the_first_forward_pass_reads_is_not_taken_for_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, slow = tiny(), SlowModel(monkeypatch, 0.001)
    given = rows_for(model, count=100)

    def read(*_: Any) -> None:
        slow.now += 30.0
        hook.remove()

    hook = model.hf.base_model.encoder.layer[0].register_forward_hook(read)
    with slow.watching(model):
        assert forward_s(model, given, rows=100) == pytest.approx(0.001)
    assert slow.now > 130


def test_passes_that_count_tokens_need_fewer_long_rows() -> None:
    model = tiny()
    short = rows_for(model, count=100)
    long = replace(short, rows=[{"input_ids": np.ones((1, 1024), np.int64)}] * 100)
    assert fewest_rows(KPruneConfig(), long) == fewest_rows(GptqConfig(), short) == FEWEST_ROWS
    assert fewest_rows(GptqConfig(), long) == 16


# A pass's own forward passes, with this model's cost: no backward pass or product moves the clock.
PREDICTED: tuple[Config, ...] = (
    KPruneConfig(round_to=8), configs()["fisher"](round_to=8), configs()["gradient"](round_to=8),
    configs()["low_rank"](), LayersConfig(count=1, by="loss"), configs()["entropy"](round_to=8),
)  # fmt: skip


@pytest.mark.parametrize("config", PREDICTED, ids=lambda config: config.kind)
def test_no_pass_takes_much_longer_than_predicted(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    slow = SlowModel(monkeypatch, 0.01)
    given = rows_for(model, count=96)
    with slow.watching(model):
        found = pace(model, config, given, share_s=1e9, most_s=1e9)
        started = slow.now
        run_pass(model, config, given)
    assert found.rows == found.wanted == 96
    assert slow.now - started <= 1.2 * found.seconds
    assert slow.now - started >= 0.2 * found.seconds, "the prediction says something"


def test_rows_are_cut_to_the_share_and_not_below_what_is_worth_looking_at(monkeypatch: pytest.MonkeyPatch) -> None:
    model, config = tiny(), KPruneConfig()
    given = rows_for(model, count=400)
    slow = SlowModel(monkeypatch, 0.01)
    with slow.watching(model):
        whole = pace(model, config, given, share_s=1e9, most_s=1e9)
        half = pace(model, config, given, share_s=whole.seconds / 2, most_s=1e9)
        few = pace(model, config, given, share_s=0.001, most_s=1e9)
        with pytest.raises(Rejected, match=r"predicted\) with 64 rows, and there are 3 s; give more --time") as refused:
            pace(model, config, given, share_s=0.001, most_s=3.0)
    assert (whole.rows, half.rows, few.rows) == (400, 200, FEWEST_ROWS)
    assert half.seconds == pytest.approx(whole.seconds / 2)
    assert few.seconds == pytest.approx(whole.seconds * FEWEST_ROWS / 400)
    assert refused.value.stage == "time"


@pytest.mark.parametrize("config", PREDICTED, ids=lambda config: config.kind)
def test_a_pass_ends_at_its_deadline(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    slow = SlowModel(monkeypatch, 0.5)  # a batch takes 16 s
    given = rows_for(model, count=200)
    with (
        slow.watching(model),
        pytest.raises(Rejected, match=r"given up after .* longer than predicted") as refused,
        ended_by(slow.now + 20.0, what=config.label),
    ):
        run_pass(model, config, given)
    assert refused.value.stage == "time"
    assert slow.now <= 100 + 20 + 16, "no more than a batch too late"
    whole = tiny()
    prune_kprune(whole, KPruneConfig(keep=0.9, round_to=8), rows_for(whole))  # nobody watches any more


def test_without_a_deadline_nothing_is_watched() -> None:
    model = tiny()
    with ended_by(float("inf"), what="x"):
        prune_kprune(model, KPruneConfig(round_to=8), rows_for(model))
