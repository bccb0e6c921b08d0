"""Figures on the techniques' pages are those of the committed measurements."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks" / "compression"))

from pages import PAGES, pages  # noqa: E402  (a script of the benchmarks, which are no package)

from hasten.passes import PASSES  # noqa: E402

WRITTEN = pages()
MARKS = re.compile("<!--.*?-->")


@pytest.mark.parametrize("path", sorted(WRITTEN), ids=lambda p: p.stem)
def test_a_page_says_what_was_measured(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == WRITTEN[path], "run benchmarks/compression/pages.py"


@pytest.mark.parametrize("kind", sorted(PASSES))
def test_every_pass_has_figures_or_says_that_it_has_none(kind: str) -> None:
    _, heading, section = (PAGES / f"{kind}.md").read_text(encoding="utf-8").partition("## Measured here\n")
    assert heading
    assert re.search(r"\d", MARKS.sub("", section)) or "Nothing yet" in section or "#measured-here" in section
