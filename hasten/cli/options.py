"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object; progress goes to stderr.")


def with_options(*options: Callable[[F], F]) -> Callable[[F], F]:
    def apply(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return apply


DATA = with_options(
    click.option("--text-column", help="Column with the text (found by name otherwise)."),
    click.option("--text-pair-column", help="Column with the second text, where there is one."),
    click.option("--label-column", help="Column with the label."),
)
HARDWARE = with_options(
    click.option("--threads", type=int, help="Threads a model may use [default: as many as cores]."),
    click.option("--cores", help="Cores to use, such as 0,1 or 0-3 [default: all this process may use]."),
)
TRUST = with_options(
    click.option("--allow-pickle", is_flag=True, help="Load pickled weights (they can run code)."),
    click.option("--trust-remote-code", is_flag=True, help="Run code that comes with the checkpoint."),
    click.option("--revision", help="Revision of a hub checkpoint."),
)
