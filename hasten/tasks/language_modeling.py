"""Language modeling: how well a decoder foresees texts.

Quality is what is left of the original's perplexity, in points: 100 * ppl(original) / ppl(model), so that a drop of
one point is one per cent of perplexity. Beside it: perplexity itself, bits per byte (which tokenizers cannot flatter),
and how often both models' likeliest next token is the same. Long texts are read through windows that overlap by half;
every token counts once, with at least half a window in front of it where the text has that much.

Legend: L tokens of an example.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hasten.records import Columns, InputError, Quality
from hasten.tasks.examples import Example, stacked
from hasten.tasks.rows import Rows, read_rows
from hasten.tasks.task import Array, Item, few_rows_warning
from hasten.tasks.text_files import is_text, read_text

HEADS = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True, slots=True)
class LanguageModeling:
    """Outputs are [N, 2 + tokens]: the sum of the tokens' log-probabilities, their number, and the likeliest ids."""

    name: str = "language-modeling"
    head: tuple[str, ...] = HEADS
    auto: str = "AutoModelForCausalLM"
    aliases: Mapping[str, str] = field(default_factory=dict)
    labelled: bool = False
    per_token: bool = True
    foretells: bool = True

    def read(self, source: str | Path, *, columns: Columns, labels_wanted: bool = True) -> Rows:
        """A plain text file (cut at paragraphs), or a table with a column of texts."""
        del labels_wanted
        if is_text(source):
            return read_text(source)
        return replace(read_rows(source, columns=columns, labels_wanted=False), pairs=None)

    def check(self, rows: Rows, labels: Sequence[str]) -> tuple[Rows, tuple[str, ...]]:
        del labels
        if not any(len(text.split()) > 1 for text in rows.texts):
            raise InputError(
                f"no text of {rows.source} has two words", expected="texts to foresee",
                remedy="name the right column with --text-column",
            )  # fmt: skip
        return rows, few_rows_warning(len(rows))

    def wrap(self, checkpoint: Any) -> Any:
        return self.wrap_model(checkpoint.model, pooling=None, normalize=False)

    def wrap_model(self, model: Any, *, pooling: str | None, normalize: bool) -> Any:
        del pooling, normalize
        from hasten.tasks.wrappers import NextTokenWrapper

        return NextTokenWrapper(model)

    def encode(self, processor: Any, item: Item) -> tuple[Example, ...]:
        parts: tuple[Example, ...] = processor.parts(item["text"], stride=processor.max_length // 2)
        return parts

    def targets(self, rows: Rows, labels: Sequence[str], encoded: Sequence[Sequence[Example]]) -> list[Array] | None:
        """[L]: the tokens that count, -100 for the others."""
        del rows, labels
        return [np.where(e.arrays["fresh"] > 0, e.arrays["input_ids"], -100) for row in encoded for e in row]

    def outputs(self, raw: Sequence[Array], encoded: Sequence[Sequence[Example]]) -> Array:
        made, rows = iter(raw), []
        for row in encoded:
            said = np.concatenate([_counted(next(made), example) for example in row])
            rows.append(np.concatenate([[said[:, 0].sum(dtype=np.float64), len(said)], said[:, 1]]))
        return stacked(rows)

    def comparable(self, outputs: Array) -> Array:
        """Without the ids: two tokens that are all but equally likely may change places."""
        return outputs[..., :1]

    def score(self, outputs: Array, rows: Rows, labels: Sequence[str], *, reference: Array | None) -> Quality:
        del labels
        against = outputs if reference is None else reference
        own, base = perplexity(outputs), perplexity(against)
        counted = int(outputs[:, 1].sum())
        width = min(outputs.shape[1], against.shape[1]) - 2
        real = np.arange(width) < np.minimum(outputs[:, 1:2], against[:, 1:2])
        alike = (outputs[:, 2 : 2 + width] == against[:, 2 : 2 + width])[real]
        size = sum(len(text.encode("utf-8", "replace")) for text in rows.texts)
        others = {
            "perplexity": own,
            "bits_per_byte": -float(outputs[:, 0].sum()) / math.log(2) / max(1, size),
            "agreement": 100.0 * float(alike.mean()) if alike.size else 100.0,
            "tokens": float(counted),
        }
        return Quality("perplexity kept", 100.0 * base / own, len(outputs), others)

    def per_row(self, outputs: Array, rows: Rows, labels: Sequence[str], *, reference: Array | None) -> Array | None:
        """Perplexity is no mean of rows."""
        del outputs, rows, labels, reference
        return None

    def predictions(self, outputs: Array, rows: Rows, labels: Sequence[str]) -> tuple[list[str], list[str]] | None:
        del outputs, rows, labels
        return None

    def decode(self, outputs: Array, rows: Rows, labels: Sequence[str]) -> list[Any]:
        """``{"log_probability", "tokens", "perplexity", "bits_per_byte"}`` of each text."""
        del labels
        return [
            {
                "log_probability": float(row[0]), "tokens": int(row[1]),
                "perplexity": perplexity(row[None]),
                "bits_per_byte": -float(row[0]) / math.log(2) / max(1, len(text.encode("utf-8", "replace"))),
            }
            for row, text in zip(outputs, rows.texts, strict=True)
        ]  # fmt: skip


def perplexity(outputs: Array) -> float:
    """exp of the mean negative log-probability over all tokens of the rows [N, 2 + tokens]."""
    tokens = float(outputs[:, 1].sum())
    return math.exp(min(700.0, -float(outputs[:, 0].sum()) / max(1.0, tokens)))


def _counted(raw: Array, example: Example) -> Array:
    """[tokens, 2]: what was said of every fresh token by the position in front of it; the first has none."""
    fresh = example.arrays["fresh"][1:] > 0
    found: Array = raw[:-1][fresh].astype(np.float64)
    return found
