"""Right-sizing for people: the terminal and the page say the same, and what users typed stays text."""

from __future__ import annotations

import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from hasten.atomic import write_atomically
from hasten.plan.sizing.answer import Checked, Sizing, answer
from hasten.plan.sizing.hardware import read_devices
from hasten.plan.sizing.prices import read_prices
from hasten.plan.sizing.shapes import read_models
from hasten.plan.sizing.spec import make_request
from hasten.records import InputError
from hasten.report.size_page import render_sizing
from hasten.report.size_terminal import show_sizing

MODELS, DEVICES = read_models(), read_devices()


@pytest.fixture(scope="module")
def sizing() -> Sizing:
    request = make_request(
        task="chat", requests_per_s=5.0, input_tokens=800, output_tokens=200, slo="ttft_ms<=500, tpot_ms<=40",
        quality="mmlu>=60", hardware="h200,l4,phone", models="qwen2.5-1.5b,qwen2.5-3b,llama-3-8b",
    )  # fmt: skip
    return answer(
        request, models=MODELS, devices=DEVICES, prices=[read_prices()["gpt-4o-mini"]],
        checked=[Checked("encoder-2x128 fp32, 1 x 8 tokens", "ms", 0.5, 0.55)],
        notes=["</script><b>hostile</b> [red]x[/red]"],
    )  # fmt: skip


def printed(found: Sizing) -> str:
    out = io.StringIO()
    show_sizing(found, console=Console(file=out, width=160))
    return out.getvalue()


def test_the_terminal_says_the_choice_and_why(sizing: Sizing) -> None:
    text = printed(sizing)
    best = sizing.recommendation.best
    assert best is not None
    assert "DEPLOY" in text
    assert best.option.shape.title in text
    for part in (
        "What holds",
        "Ruled out",
        "In memory",
        "What it rests on",
        "If it were asked differently",
        "Buy or build",
        "Predictions against this host",
        "[red]x[/red]",
        "hasten optimize",
    ):
        assert part in text, part


def test_the_page_holds_the_plots_and_no_foreign_markup(sizing: Sizing) -> None:
    page = render_sizing(sizing)
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    assert set(figures) == {"cost", "load", "context"}
    assert all(figure["data"] for figure in figures.values())
    for trace in figures["load"]["data"]:
        assert trace["y"] == sorted(trace["y"]), "latency grows with load"
    for trace in figures["context"]["data"]:
        assert trace["y"] == sorted(trace["y"]), "memory grows with context"
    assert "<b>hostile</b>" not in page
    assert "&lt;b&gt;hostile" in page
    assert 'http-equiv="Content-Security-Policy"' in page
    assert sizing.sentence.split(":")[0] in page


def test_nothing_holding_is_shown_as_well() -> None:
    found = answer(
        make_request(task="chat", slo="tpot_ms<=0.01", hardware="t4", models="llama-3-8b"),
        models=MODELS,
        devices=DEVICES,
    )
    assert "NOTHING HOLDS" in printed(found)
    assert "Nothing holds" in render_sizing(found)


def test_a_page_never_takes_the_place_of_a_device(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match="is no file"):
        write_atomically(pipe, "text")
    assert pipe.is_fifo()


def test_control_characters_do_not_reach_the_page(sizing: Sizing) -> None:
    hostile = replace(sizing, warnings=("a\x1b[31m b\u202e c",))
    page = render_sizing(hostile)
    assert "\x1b" not in page
    assert "\u202e" not in page
