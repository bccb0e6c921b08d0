"""What an API asks for a million tokens, as published at a date. Takes the file beside this one and the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from hasten.plan.sizing.figures import Figure
from hasten.plan.sizing.tables import find_entry, read_catalogue, require

FILE = Path(__file__).with_name("prices.toml")


@dataclass(frozen=True, slots=True)
class ApiPrice:
    """US dollars for a million tokens."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str
    date: str
    input_usd: Figure
    output_usd: Figure

    def __post_init__(self) -> None:
        require(all(0 <= f.value <= 1e6 for f in (self.input_usd, self.output_usd)), "prices: from 0 to 1e6 USD")

    def request_usd(self, input_tokens: float, output_tokens: float) -> float:
        return (input_tokens * self.input_usd.value + output_tokens * self.output_usd.value) / 1e6


def read_prices(own: str | Path | None = None) -> dict[str, ApiPrice]:
    """hasten's table, and the user's over it. Raises InputError that names file, entry and key."""
    return read_catalogue(ApiPrice, FILE, own)


def find_price(name: str, prices: Mapping[str, ApiPrice]) -> ApiPrice:
    """By name. Raises InputError with the nearest names."""
    return find_entry(name, prices, what="API", remedy="give its prices in a file with --prices-file")
