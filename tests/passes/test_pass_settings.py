"""Settings of every pass: what has the wrong type or no sense is refused by name, wherever the config is made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from pass_settings import SETTINGS

from hasten.passes import configs
from hasten.passes.distillation import DistillConfig
from hasten.passes.layers import LayersConfig
from hasten.passes.low_rank import LowRankConfig
from hasten.passes.sensitivity import PrecisionConfig
from hasten.records import InputError, config_from_dict, config_to_dict

# Numbers that may well be below zero: a density's logarithm, and a part that int8 makes slower.
SIGNED = {("gobo", "log_density"), ("mixed_precision", "savings_ms")}
TUPLES = {"unit_costs": 2, "savings_ms": 3, "keep": 2, "assistants": 1, "teachers": 1}


def choices(hint: Any) -> Iterator[Any]:
    """The parts of a union, or the type itself, without ``None``."""
    if get_origin(hint) in (Union, UnionType):
        for part in get_args(hint):
            yield from choices(part)
    elif hint is not type(None):
        yield hint


def declared() -> Iterator[tuple[str, str, Any]]:
    for kind, config in configs().items():
        hints = get_type_hints(config)
        for field in fields(config):
            for part in choices(hints[field.name]):
                yield kind, field.name, part


ALL = list(declared())
LITERALS = [(kind, name) for kind, name, part in ALL if get_origin(part) is Literal]
NUMBERS = [(kind, name) for kind, name, part in ALL if part in (int, float)]
WHOLE = [(kind, name) for kind, name, part in ALL if part is int]
LISTS = [(kind, name, get_args(part)[0]) for kind, name, part in ALL if get_origin(part) is tuple]


def changed(kind: str, name: str, value: Any) -> Any:
    return replace(SETTINGS[kind][0], **{name: value})  # type: ignore[type-var]


def test_there_is_something_to_try() -> None:
    assert ("layers", "by") in LITERALS
    assert ("qat", "group") in LITERALS
    assert ("mixed_precision", "save_ms") in NUMBERS
    assert len(LITERALS) > 15
    assert len(NUMBERS) > 80
    assert {name for _, name, _ in LISTS} == set(TUPLES)


@pytest.mark.parametrize(("kind", "name"), LITERALS)
def test_a_word_or_number_that_a_field_does_not_know(kind: str, name: str) -> None:
    for wrong in ("no-such-word", 7.5, -1, ["tensor"]):
        with pytest.raises(
            InputError, match=rf"{name}=.* for the pass {kind}\n  expected: .*\n  to do: correct {name}"
        ):
            changed(kind, name, wrong)


@pytest.mark.parametrize(("kind", "name"), NUMBERS)
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), "many", None, (1, 2), -1], ids=str)
def test_what_is_no_number_in_range(kind: str, name: str, wrong: Any) -> None:
    if wrong == -1 and (kind, name) in SIGNED:
        assert getattr(changed(kind, name, -1), name) == -1.0
        return
    optional = type(None) in get_args(get_type_hints(configs([kind])[kind])[name])
    if wrong is None and optional:
        assert getattr(SETTINGS[kind][0], name) is None
        return
    with pytest.raises(InputError, match=name):
        changed(kind, name, wrong)


@pytest.mark.parametrize(("kind", "name"), WHOLE)
def test_no_fractions_where_things_are_counted(kind: str, name: str) -> None:
    with pytest.raises(InputError, match=rf"{name}=2.5 for the pass {kind}"):
        changed(kind, name, 2.5)


@pytest.mark.parametrize(("kind", "name", "of"), LISTS)
def test_lists(kind: str, name: str, of: Any) -> None:
    count = TUPLES[name]
    for wrong in ("folder", 3, [["a"]] * count):
        with pytest.raises(InputError, match=rf"{name}=.* for the pass {kind}"):
            changed(kind, name, wrong)
    if of is not str:
        for number in (float("nan"), "many"):
            with pytest.raises(InputError, match=rf"{name}=.* for the pass {kind}"):
                changed(kind, name, (number,) * count)
        if (kind, name) not in SIGNED:
            with pytest.raises(InputError, match=name):
                changed(kind, name, (-1,) * count)


def test_what_fits_is_as_declared() -> None:
    config = LayersConfig(count=np.int64(3), keep=[1, 3, 5])  # type: ignore[arg-type]
    assert (config.count, type(config.count), config.keep) == (3, int, (1, 3, 5))
    assert hash(config) == hash(LayersConfig(count=3, keep=(1, 3, 5)))
    assert type(DistillConfig(epochs=12).epochs) is float
    assert config_from_dict(config_to_dict(config), configs()) == config


def test_a_recipe_says_the_same() -> None:
    with pytest.raises(InputError, match="which"):
        config_from_dict({"kind": "low_rank", "which": "fnn"}, configs())
    with pytest.raises(InputError, match=r"keep=1\.5, round_to=8"):
        config_from_dict({"kind": "low_rank", "keep": 1.5}, configs())
    with pytest.raises(InputError, match=r"which='fnn' for the pass low_rank\n  expected: 'ffn', 'attention' or 'all'"):
        LowRankConfig(which="fnn")  # type: ignore[arg-type]


def test_savings_are_above_zero() -> None:
    with pytest.raises(InputError, match=r"save_ms=-1\.0\n  expected: above 0 ms"):
        PrecisionConfig(save_ms=-1, savings_ms=(0.5, 0.2, -0.3))


def test_patience_is_a_number_of_scores() -> None:
    for wrong in (0, -3):
        with pytest.raises(InputError, match=f"patience={wrong}"):
            DistillConfig(patience=wrong)
