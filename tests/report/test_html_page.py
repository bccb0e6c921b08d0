"""The page: complete, closed to hostile texts, and asking the network for nothing."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from shutil import which

import pytest

from hasten.records import Budget, Figures, Trial, Verdict, Workload
from hasten.report.html import render_html, write_html

COMMAND = 'hasten optimize m --data d.csv --budget "p95_ms<=20" && echo <done>'


class Page(HTMLParser):
    """The page's elements, its visible words, and its scripts and styles apart."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words, self.scripts, self.styles = "", [], []  # type: str, list[str], list[str]
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else self._inside
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = "" if tag == self._inside else self._inside

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside == "style":
            self.styles.append(data)
        else:
            self.words += " " + " ".join(data.split())


@pytest.fixture
def text(verdict: Verdict, trials: list[Trial], samples: Mapping[str, Sequence[float]]) -> str:
    return render_html(verdict, trials, command=COMMAND, samples=samples, workload=Workload(batch=4))


@pytest.fixture
def page(text: str) -> Page:
    return Page(text)


def test_it_says_everything(page: Page, verdict: Verdict, trials: list[Trial]) -> None:
    words = re.sub(r"\s+", " ", page.words)
    for expected in (
        "Meets the budget", "5.1x faster", "quality_drop<=1%", "relax quality_drop", verdict.warnings[0],
        "11.3 ms", "2.21 ms", "425 /s", "23.0 MB", "188 MB", "78.90", "Macro F1",
        "p = 0.51", "-0.30 to 0.70", "3 test rows changed prediction", "predicted",
        "AMD EPYC 9R14", "avx512_vnni", "onnxruntime 1.24.1", "batches of 4",
        "512 rows", "800 rows", "1,600 rows", "stratified by label", "seed 0",
        COMMAND, "6 min 53 s",
    ):  # fmt: skip
        assert expected in words, expected
    for trial in trials:
        assert trial.label in words
        if trial.status == "rejected":
            assert trial.reason is not None
            assert trial.reason in words


def test_it_fetches_nothing(page: Page) -> None:
    loading = {"src", "srcset", "href", "action", "data", "poster", "background", "formaction", "ping"}
    addresses = [v for _, attrs in page.elements for k, v in attrs.items() if k in loading]
    assert addresses == ["data:,"], "only the empty icon, which keeps the browser from asking for one"
    assert not {"iframe", "object", "embed", "base", "img", "video", "audio"} & {tag for tag, _ in page.elements}
    for style in page.styles:
        assert not re.search(r"url\(|@import|https?:", style)
    ours = [script for script in page.scripts if len(script) < 1_000_000]
    assert len(ours) == 2
    for script in ours:
        assert not re.search(r"fetch\(|XMLHttpRequest|WebSocket|import\(", script)
    assert not re.search(r"https?:", ours[1])


def test_the_page_forbids_itself_the_network(page: Page) -> None:
    policy = next(a["content"] for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "http" not in policy
    assert "unsafe-eval" not in policy


def test_hostile_texts_stay_texts(page: Page, text: str) -> None:
    assert len(page.scripts) == 3, "plotly, the figures, the drawing"
    assert '<script>alert("x")</script>' not in text
    assert "<img" not in text.replace(page.scripts[0], "")
    assert '</script><script>alert("x")</script> [red]not markup[/red] {{ 7*7 }}' in page.words
    assert not [attrs for _, attrs in page.elements if any(name.startswith("on") for name in attrs)]


def test_hostile_figures_stay_figures(verdict: Verdict, trials: list[Trial]) -> None:
    hostile = "</script><b onmouseover=alert(1)>\u2028<!--"
    measured = [replace(t, label=hostile, recipe={"passes": [], "runtime": {"kind": hostile}}) for t in trials]
    sneaky = replace(verdict, source=hostile, sentence=hostile, budget=Budget(verdict.budget.constraints, hostile))
    page = Page(render_html(sneaky, measured, command=hostile, title=hostile))
    assert len(page.scripts) == 3
    figures = json.loads(page.scripts[1])
    names = [trace["name"] for trace in figures["pareto"]["data"] if "name" in trace]
    assert any("&lt;/script&gt;" in name for name in names), "Plotly reads HTML in labels: escaped for it too"
    assert not any("<" in name for name in names)


def test_the_plotting_script_is_inlined_once(text: str, page: Page) -> None:
    assert sum("Plotly.newPlot" in s for s in page.scripts if len(s) < 1_000_000) == 1
    assert len([s for s in page.scripts if len(s) > 1_000_000]) == 1
    assert len(text) < 6_000_000


def test_only_some_flips_stand_open_and_all_are_there(verdict: Verdict, trials: list[Trial]) -> None:
    flips = tuple(replace(verdict.flips[0], row=1000 + i, text=f"text number {i}") for i in range(25))
    page = Page(render_html(replace(verdict, flips=flips), trials, command=COMMAND))
    assert all(f"text number {i}" in page.words for i in range(25))
    assert "The other 15" in page.words


def test_a_run_that_found_nothing_has_a_page_too(nothing_found: Verdict) -> None:
    page = Page(render_html(nothing_found, [], command=""))
    assert "Nothing beats your baseline" in page.words
    assert "stopped before it was through" in page.words
    assert "No candidate was rejected" in page.words
    assert list(json.loads(page.scripts[1])) == ["latency"]


def test_an_embedding_run_without_labels_or_flips(verdict: Verdict, trials: list[Trial]) -> None:
    fidelity = replace(verdict, task="feature-extraction", flips=(), quality_p_value=None)
    page = Page(render_html(fidelity, trials, command=COMMAND))
    assert "McNemar" not in page.words


def test_without_figures_the_page_has_no_charts(verdict: Verdict, trials: list[Trial]) -> None:
    bare = [replace(t, figures=Figures(), speedup=None, quality_drop_pt=None) for t in trials]
    side = replace(verdict.baseline, figures=Figures())
    empty = replace(verdict, baseline=side, tuned_baseline=side, chosen=replace(side, recipe_id="x"))
    page = Page(render_html(empty, bare, command=COMMAND))
    assert json.loads(page.scripts[1]) == {}
    assert ("div", "plot") not in [(tag, attrs.get("class")) for tag, attrs in page.elements]


def test_the_file_is_written_whole(verdict: Verdict, trials: list[Trial], tmp_path: Path) -> None:
    lone_surrogate = replace(verdict, source="broken \ud800 text")
    write_html(tmp_path / "report.html", lone_surrogate, trials, command=COMMAND)
    assert "broken ? text" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.browser
@pytest.mark.skipif(which("chromium") is None, reason="no chromium")
def test_a_browser_draws_both_charts_and_runs_nothing_hostile(text: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(text, encoding="utf-8")
    done = subprocess.run(
        ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--no-first-run",
         f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr",
         "--virtual-time-budget=5000", "--dump-dom",
         (tmp_path / "report.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout.count('class="plot-container plotly"') == 2
    assert "CONSOLE" not in done.stderr, "neither an error nor a refused request"
