"""Every technique has a page, which names every setting of its pass and no other."""

from __future__ import annotations

import json
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

from hasten.passes import PASSES, configs
from hasten.records import config_from_dict

PAGES = Path(__file__).parents[2] / "docs" / "techniques"


def table_of(kind: str) -> list[list[str]]:
    """The rows of the page's table of settings, cell by cell."""
    text = (PAGES / f"{kind}.md").read_text(encoding="utf-8")
    section = re.search(r"^## Settings\n(.*?)^## ", text, re.DOTALL | re.MULTILINE)
    assert section is not None, f"{kind}.md has no section of settings"
    rows = [line.strip().strip("|").split("|") for line in section.group(1).splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in row] for row in rows]


def test_there_is_a_page_for_every_pass_and_no_other() -> None:
    assert {path.stem for path in PAGES.glob("*.md")} - {"README"} == set(PASSES)


@pytest.mark.parametrize("kind", PASSES)
def test_every_setting_is_on_its_page(kind: str) -> None:
    named = [name for row in table_of(kind) for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(named) == sorted(field.name for field in fields(configs([kind])[kind]))


@pytest.mark.parametrize("kind", PASSES)
def test_the_defaults_are_those_of_the_config(kind: str) -> None:
    defaults = {field.name: field.default for field in fields(configs([kind])[kind])}
    for row in table_of(kind):
        names = re.findall(r"`(\w+)`", row[0])
        said = [cell.strip(' `"') for cell in row[1].split(",")]
        if len(said) == 1:
            said *= len(names)
        assert len(said) == len(names), row
        for name, text in zip(names, said, strict=True):
            assert text in spelt(defaults[name]), f"{name} of {kind} is {defaults[name]!r}, and the page says {text}"


def spelt(default: Any) -> set[str]:
    """How a page may write a default."""
    if default is MISSING:
        return {"-"}
    if default is None or default == ():
        return {"none"}
    if isinstance(default, bool):
        return {"true", "on"} if default else {"false", "off"}
    if isinstance(default, str):
        return {default}
    mantissa, _, power = f"{default:e}".partition("e")
    return {str(default), f"{default:g}", f"{float(mantissa):g}e{int(power)}"}


@pytest.mark.parametrize("kind", PASSES)
def test_the_recipe_on_the_page_can_be_read(kind: str) -> None:
    text = (PAGES / f"{kind}.md").read_text(encoding="utf-8")
    found = re.findall(r'`(\{"kind": .*?\})`', text)
    assert found
    for recipe in found:
        data = json.loads(recipe)
        assert config_from_dict(data, configs([data["kind"]])).kind == data["kind"]
