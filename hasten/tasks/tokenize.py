"""Texts to token arrays: the same code offline and online.

Takes a ``tokenizer.json`` and a length limit, gives integer arrays. Uses the
``tokenizers`` library alone, so a bundle tokenizes without transformers.
Shapes: L tokens, B rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hasten.records import InputError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row: ids, token types and mask, each int64 [L]; ``truncated`` when the text was cut."""

    ids: Array
    type_ids: Array
    attention: Array
    truncated: bool


class Tokenizer:
    """A fast tokenizer with truncation to ``max_length`` and no padding of its own."""

    def __init__(self, tokenizer_json: str, *, max_length: int) -> None:
        import tokenizers

        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
        except Exception as error:  # the library raises bare Exception
            raise InputError(
                f"tokenizer.json is not readable ({error})",
                expected="a file that the tokenizers library can open",
                remedy="save the tokenizer again with a current transformers",
            ) from error
        self.max_length = max_length
        # A saved tokenizer may carry the padding and truncation of its training run; only the side that is
        # cut off belongs to the model.
        side = (self._tokenizer.truncation or {}).get("direction", "right")
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length, strategy="longest_first", direction=side)

    def encode(self, text: str, pair: str | None = None) -> Encoded:
        """Encode one text (or pair) with its special tokens."""
        found = self._tokenizer.encode(_clean(text), None if pair is None else _clean(pair))
        return Encoded(
            ids=np.array(found.ids, dtype=np.int64),
            type_ids=np.array(found.type_ids, dtype=np.int64),
            attention=np.array(found.attention_mask, dtype=np.int64),
            truncated=bool(found.overflowing),
        )


def encode_rows(
    tokenizer: Tokenizer, texts: Sequence[str], pairs: Sequence[str | None] | None, *, apart: bool
) -> list[Encoded]:
    """Every sequence of the rows: a text with its pair in one, or, where a task embeds them ``apart``, one each.

    Rows whose pair is ``None`` are one sequence either way.
    """
    found = []
    for text, pair in zip(texts, pairs or [None] * len(texts), strict=True):
        if apart and pair is not None:
            found += [tokenizer.encode(text), tokenizer.encode(pair)]
        else:
            found.append(tokenizer.encode(text, pair))
    return found


def pad_batch(rows: Sequence[Encoded], input_names: Sequence[str]) -> dict[str, Array]:
    """int64 [B, L] arrays of the wanted names, padded on the right to the longest row.

    Padding ids are zero: the mask hides them, whatever the tokenizer's own padding id is.
    """
    longest = max(1, *(len(row.ids) for row in rows))
    columns = {"input_ids": "ids", "attention_mask": "attention", "token_type_ids": "type_ids"}
    batch = {}
    for name in input_names:
        array = np.zeros((len(rows), longest), dtype=np.int64)
        for i, row in enumerate(rows):
            values = getattr(row, columns[name])
            array[i, : len(values)] = values
        batch[name] = array
    return batch


def _clean(text: str) -> str:
    """Lone surrogates (from broken input) have no UTF-8 form; the library would fail on them."""
    return text.encode("utf-8", "replace").decode("utf-8")
