"""What every page of hasten has in common: one self-contained file that makes no network request.

Style, script and data stand inside, and the page's own content policy forbids the rest. Texts from users are hostile
here: all go through Jinja's escaping, and the charts' data through :func:`script_json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hasten import __version__
from hasten.ledger import plain
from hasten.records import MissingDependency

_HERE = Path(__file__).parent


def render(template: str, *, filters: Mapping[str, Any], figures: Mapping[str, Any], **values: Any) -> str:
    """A page as text. ``figures`` are Plotly figures by the id of their place on it.

    Raises MissingDependency without Jinja or Plotly.
    """
    from markupsafe import Markup

    environment = _environment()
    environment.filters |= {"pretty": _pretty, "typeset": _typeset, "sentence_case": _sentence_case, **filters}
    page: str = environment.get_template(template).render(
        plot_ids=tuple(figures),
        version=__version__,
        style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        figures=Markup(script_json(figures)),
        plotly=Markup(_plotly_script()),
        **values,
    )
    return page


def _environment() -> Any:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise MissingDependency("jinja2", extra="optimize") from error
    return Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )


# Line ends, spaces that do not break, and halves of broken text, which writing makes a question mark of.
_KEPT = frozenset("\n\u00a0") | frozenset(map(chr, range(0xD800, 0xE000)))


def _printable(value: Any) -> Any:
    """Texts without control and direction characters; hasten's own style and script as they are."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return "".join(c if c.isprintable() or c in _KEPT else " " if c.isspace() else "\ufffd" for c in value)


def _sentence_case(text: str) -> str:
    return text[:1].upper() + text[1:]


def _typeset(text: str) -> str:
    """Arrows drawn, and never at the start of a line."""
    return text.replace(" -> ", "\u00a0\u2192 ")


def _pretty(data: Any) -> str:
    return json.dumps(plain(data), indent=2)


def script_json(data: Any) -> str:
    """JSON that may stand inside a script element: no text in it can close the element or open a comment."""
    text = json.dumps(plain(data), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _plotly_script() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MissingDependency("plotly", extra="optimize") from error
    script: str = get_plotlyjs()
    assert "</script" not in script.lower(), "the plotting script would close its own element"
    return script
