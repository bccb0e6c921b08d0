"""Answers piece by piece: nothing is lost when a later token changes an earlier letter, and settings are checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hasten.bundle.answers import Answers
from hasten.bundle.load import Model
from hasten.records import InputError, Workload
from hasten.tasks.examples import Example


class Words:
    """A tokenizer whose third token changes what the second one was read as."""

    max_length = 9
    said = ("do", "do n", "don't", "don't go", "don't go\ufffd", "don't go\u00e9")

    def text(self, ids: Sequence[int]) -> str:
        return self.said[len(ids) - 1] if ids else ""

    def prompt(self, text: str) -> Example:
        del text
        return Example({"input_ids": np.array([1]), "attention_mask": np.array([1])}, left=True)


class Session:
    precision = "fp32"

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def generate(self, arrays: Any, generation: Any) -> Iterator[Any]:
        del arrays
        self.asked.append(generation)
        for number in range(6):
            yield np.array([number + 10])

    def close(self) -> None: ...


@pytest.fixture
def model(tmp_path: Path) -> Model:
    manifest: Any = SimpleNamespace(
        task="text-generation", workload=Workload(), answers=Answers(most=6, timed=2, ends=(2,), never=(3,)),
        input_names=("input_ids", "attention_mask"), labels=(),
    )  # fmt: skip
    return Model(manifest, session=Session(), processor=Words(), folder=tmp_path)


def test_pieces_go_on_from_what_stayed(model: Model) -> None:
    assert list(model.generate("hello")) == ["do", " n", "n't", " go", "\u00e9"]
    (asked,) = model.session.asked
    assert (asked.new_tokens, asked.never) == (6, (3,))


@pytest.mark.parametrize(
    "wrong",
    [
        {"new_tokens": 0},
        {"new_tokens": "x"},
        {"new_tokens": 1.5},
        {"temprature": 1.0},
        {"temperature": "hot"},
        {"seed": True},
        {"ends": (1,)},
        {"top_p": 0.0},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(model: Model, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        list(model.generate("hello", **wrong))


@pytest.mark.parametrize("batch", [0, -1, "x", 1.5, True])
def test_batches_that_hold_nothing_are_refused(model: Model, batch: Any) -> None:
    with pytest.raises(InputError, match="batch = "):
        model.predict(["hello"], batch=batch)


@pytest.mark.parametrize("rows", [None, 5, "hello", {"text": "hello"}])
def test_rows_are_a_list(model: Model, rows: Any) -> None:
    with pytest.raises(InputError, match="a list of rows"):
        model.predict(rows)


def test_inputs_that_its_processor_does_not_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest that lies is a damaged bundle, not a fault; and the session does not stay open."""
    from tokenizers import Tokenizer, models

    module = import_module("hasten.bundle.load")  # the package has a function of this name
    closed: list[bool] = []
    session = SimpleNamespace(close=lambda: closed.append(True))
    monkeypatch.setattr(module, "open_session", lambda *_, **__: session)
    (tmp_path / "tokenizer").mkdir()
    Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")).save(
        str(tmp_path / "tokenizer/tokenizer.json")
    )
    manifest: Any = SimpleNamespace(
        workload=Workload(), instructions=(), max_length=8, input_names=("pixel_values",), task="text-generation"
    )
    with pytest.raises(InputError, match="names pixel_values"):
        module.open_model(tmp_path, manifest, threads=None, cores=None)
    assert closed == [True]
