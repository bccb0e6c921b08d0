"""How verbs print: for people, or one JSON object; progress on stderr."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from hasten.ledger import plain


def names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def reporter(*, bound: str = "at most") -> Any:
    """A live bar on a terminal, plain lines elsewhere; always on stderr. ``bound``: what the time that is left is."""
    from contextlib import nullcontext

    from rich.console import Console

    from hasten.pipeline.progress import Bar, Lines

    console = Console(stderr=True)
    if console.is_terminal:
        return Bar(console, bound=bound)
    return nullcontext(Lines(lambda text: click.echo(text, err=True), bound=bound))


def stdout() -> Any:
    from rich.console import Console

    return Console()


def emit(value: Any) -> None:
    click.echo(json.dumps(plain(value), allow_nan=False))


def emit_lines(records: Any, *, out: Path | None, as_json: bool) -> None:
    """JSONL to a file (whole or not at all) or stdout; with --json a single object."""
    if out is not None:
        count = _write_lines(records, out)
        emit({"out": str(out), "n": count}) if as_json else click.echo(f"wrote {count} predictions to {out}", err=True)
    elif as_json:
        found = list(records)
        emit({"predictions": found, "n": len(found)})
    else:
        for record in records:
            click.echo(_line(record))


def _line(record: Any) -> str:
    """Readable JSON; with escapes where a text holds half a character (a lone surrogate): UTF-8 has none."""
    text = json.dumps(record, ensure_ascii=False)
    return text if text.isascii() or _encodable(text) else json.dumps(record)


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _write_lines(records: Any, out: Path) -> int:
    """The whole file or nothing; how many records it holds. What is no file (a pipe, /dev/null) is written to as it
    is: renaming over it would put a file in its place."""
    if out.exists() and not out.is_file():
        return _write(records, out)
    part = out.with_name(out.name + ".part")
    try:
        count = _write(records, part)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return count


def _write(records: Any, path: Path) -> int:
    with path.open("w", encoding="utf-8") as stream:
        return sum(bool(stream.write(_line(record) + "\n")) for record in records)


def show_result(result: Any, *, as_json: bool) -> None:
    emit(result.to_dict()) if as_json else result.show(stdout())
    if result.verdict.interrupted:
        sys.exit(130)
    sys.exit(1 if result.verdict.outcome == "not_met" else 0)
