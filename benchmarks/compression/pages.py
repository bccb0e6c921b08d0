"""Writes the figures of ``results/`` into the pages of ``docs/techniques``, between two marks of each.

``pages.py`` after a benchmark; ``<!-- figures -->`` and ``<!-- end of figures -->`` stand around what it writes: a
technique's own rows on its page (a decoder's too), those of all passes on the index, the ways to integers on QAT's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"
PAGES = Path(__file__).parents[2] / "docs" / "techniques"
INDEX, INTEGERS, PROGRESSIVE = "README", "qat", "progressive"
_MARKED = re.compile(r"(<!-- figures -->\n).*?(<!-- end of figures -->)", re.S)
_SOURCES = ("compression/techniques", "compression/recovery", "families/decoders")
_UNSAID = ("batch", "rounds", "representation")
_CHANCE = "One seed: differences below two points mean nothing."
Row = Mapping[str, Any]


def main() -> None:
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")


def pages() -> dict[Path, str]:
    """Every page that has the marks, as it should be."""
    found = {}
    for path in sorted(PAGES.glob("*.md")):
        parts = _MARKED.split(path.read_text(encoding="utf-8"), maxsplit=1)
        if len(parts) == 4:
            before, opening, closing, after = parts
            found[path] = f"{before}{opening}{_tables(path.stem)}\n{closing}{after}"
    return found


def _tables(page: str) -> str:
    """What stands between the marks of a page. Raises ValueError where nothing was measured."""
    once, taught, decoders = (_read(name) for name in _SOURCES)
    own = [row for row in once["rows"] if page in (INDEX, row["kind"])]
    lessons = [row for row in taught["rows"] if row["kind"] == page]
    parts = [
        _once(own, once["original"]) if own else "",
        _lessons(lessons, taught) if lessons else "",
        _integers(_read("compression/integers")) if page == INTEGERS else "",
        _progressive(_read("compression/progressive")) if page == PROGRESSIVE else "",
        _decoders(page, decoders),
    ]
    if not any(parts):
        raise ValueError(f"{page} has marks for figures, and there are none of it in {RESULTS}")
    return "\n\n".join(filter(None, parts))


def _once(rows: Iterable[Row], original: Row) -> str:
    head = [
        f"MiniLM-L6 on Banking77, accuracy on 1,540 rows that no pass saw (the original: {original['accuracy']:.1f} %",
        f"in {original['bytes'] / 1e6:.1f} MB), bytes of the folder that `save_model` writes, seconds of a core",
        f"(`benchmarks/compression/techniques.py`). {_CHANCE} No latency was measured.",
    ]
    lines = [(_named(r), f"{r['accuracy']:.1f}", f"{r['bytes'] / 1e6:.1f}", f"{r['seconds']:.1f}") for r in rows]
    return _table(head, ("pass", "accuracy, %", "MB", "seconds"), lines)


def _named(row: Row) -> str:
    """The recipe's label, and what it does not say of the settings."""
    more = [f"{name} {row['settings'][name]:g}" for name in _UNSAID if name in row["settings"]]
    return f"{row['label']} ({', '.join(more)})" if more else str(row["label"])


def _lessons(rows: Iterable[Row], taught: Row) -> str:
    head = [
        f"MiniLM-L6 on Banking77 with {taught['layers']} of its 6 layers: {taught['before']:.1f} % before (the whole",
        f"model: {taught['original']:.1f}), after {taught['epochs']:g} epoch of 9,992 rows accuracy on 1,540 others;",
        f"the seconds are those of a core that other work shared (`benchmarks/compression/recovery.py`). {_CHANCE}",
    ]
    lines = [(r["learns"], f"{r['accuracy']:.1f}", f"{r['seconds']:.0f}") for r in rows]
    return _table(head, ("learnt from", "accuracy, %", "seconds"), lines)


def _integers(found: Row) -> str:
    head = [
        f"MiniLM-L6 on Banking77 (the original: {found['original']:.1f} %), accuracy on 1,540 rows that nothing saw,",
        f"one row at a time on the runtime itself (`benchmarks/compression/integers.py`). {_CHANCE}",
    ]
    lines = [
        (r["way"], r["runtime"], f"{r['accuracy']:.1f}" if "accuracy" in r else f"rejected: {r['rejected']}")
        for r in found["rows"]
    ]
    return _table(head, ("way", "runtime", "accuracy, %"), lines)


def _progressive(found: Row) -> str:
    first = found["rows"][0]
    head = [
        f"MiniLM-L6 on Banking77 ({found['original']:.1f} %, {found['parameters'] / 1e6:.1f} million parameters), a",
        f"student of {first['parameters'] / 1e6:.1f} million, {first['epochs']:g} epochs in all, accuracy on 1,540",
        "rows that nothing saw (`benchmarks/compression/progressive.py`).",
    ]
    seeds = sorted({r["seed"] for r in found["rows"]})
    ways = list(dict.fromkeys(r["way"] for r in found["rows"]))
    at = {(r["way"], r["seed"]): r for r in found["rows"]}
    lines = [
        (way, *(f"{at[way, s]['after']:.1f}" for s in seeds), f"{mean(at[way, s]['training_s'] for s in seeds):.0f}")
        for way in ways
    ]
    return _table(head, ("way", *(f"seed {s}, %" for s in seeds), "seconds each"), lines)


def _decoders(page: str, found: Row) -> str:
    rows = [row for row in found["rows"] if row.get("kind") == page]
    if not rows:
        return ""
    plain = {(r["model"], r["way"]): r for r in found["rows"] if "kind" not in r}
    models = list(dict.fromkeys(r["model"] for r in rows))
    wholes = [
        f"{name} ({plain[name, 'dequantized']['from']}, {plain[name, 'bf16']['perplexity']:.2f} in "
        f"{plain[name, 'bf16']['bytes'] / 1e6:.0f} MB as bf16)"
        for name in models
    ]
    head = [
        f"Decoders on WikiText-2's test text ({plain[models[0], 'dequantized']['tokens']:,} tokens or so), windows of",
        f"{found['settings']['max_length']} tokens that overlap by half, perplexity of the dequantized weights of",
        f"{' and '.join(wholes)}; how far above, with a 95 % interval over",
        "windows; seconds to quantize, Gemma's of one core beside other work, but for AWQ with zeros and AWQ and GPTQ",
        "in groups of 128 (`benchmarks/families/decoders.py`).",
    ]
    return _table(head, ("model", "pass", "perplexity", "above bf16, %", "MB", "seconds"), map(_decoder, rows))


def _decoder(row: Row) -> tuple[str, ...]:
    if "rejected" in row:
        return (row["model"], row["way"], f"rejected: {row['rejected']}", "", "", "")
    above = row["above_bf16_percent"]
    return (
        row["model"], row["way"], f"{row['perplexity']:.2f}",
        f"{above['estimate']:.2f} ({above['low']:.2f}..{above['high']:.2f})", f"{row['bytes'] / 1e6:.0f}",
        "" if row["quantize_s"] is None else f"{row['quantize_s']:.0f}",
    )  # fmt: skip


def _table(head: Sequence[str], columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [columns, ["---"] * len(columns), *lines]
    return "\n".join([*head, "", *(f"| {' | '.join(row)} |" for row in rows)])


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    main()
