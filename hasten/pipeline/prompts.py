"""Prompts of an exact length, made of a model's own vocabulary or of the user's texts.

Takes a tokenizer's files or rows, gives token ids. What random tokens say is of no interest to a clock; a mixture of
experts, though, may send them elsewhere than the user's texts.

Legend: S streams, P tokens of a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hasten.records import InputError
from hasten.tasks.rows import Rows

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Prompts:
    """``ids`` are drawn from (``drawn``), or read one after the other, from the beginning again at their end."""

    ids: Array
    drawn: bool
    tokens: int
    seed: int
    input_names: tuple[str, ...]

    def __call__(self, streams: int, number: int) -> dict[str, Array]:
        """The arrays int64 [S, P] of an answer: others for each ``number``, the same for every side."""
        if self.drawn:
            draw = np.random.default_rng((self.seed, streams, number))
            ids = self.ids[draw.integers(0, len(self.ids), (streams, self.tokens))]
        else:
            first = (self.seed + number) * streams * self.tokens
            ids = np.take(self.ids, first + np.arange(streams * self.tokens), mode="wrap")
            ids = ids.reshape(streams, self.tokens)
        made = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        return {name: made[name] for name in self.input_names}


def vocabulary(files: Mapping[str, bytes], *, words: int | None) -> Array:
    """The ids that stand for pieces of text: the tokenizer's, without its special tokens and those that the model has
    no row for."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode("utf-8"))
    known = set(tokenizer.get_vocab(with_added_tokens=True).values())
    special = set(tokenizer.get_added_tokens_decoder())
    usual = sorted(i for i in known - special if words is None or i < words)
    if not usual:
        raise InputError(
            "a tokenizer without a token that the model has a row for", expected="the model's own tokenizer",
            remedy="save it into the model's folder with save_pretrained",
        )  # fmt: skip
    return np.array(usual, dtype=np.int64)


def tokens_of(rows: Rows, processor: Any, *, words: int | None) -> Array:
    """All texts' tokens in the rows' order. Raises InputError where there is none, or one that the model does not
    know."""
    ids: Sequence[int] = [i for text in rows.texts for i in processor.ids(text)]
    if not ids or (words is not None and max(ids) >= words):
        raise InputError(
            f"{rows.source} gives {len(ids)} tokens" + (f", one of them {max(ids)}" if ids else ""),
            expected="texts, and the tokenizer that the model was trained with", remedy="give other rows with --data",
        )  # fmt: skip
    return np.array(ids, dtype=np.int64)
