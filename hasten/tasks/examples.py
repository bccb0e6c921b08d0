"""What a model takes: the arrays of one request, and requests put together to a batch.

The same code offline and online. Shapes: B examples, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hasten.tasks.task import Array

# What a decoder beside an encoder is given to learn from: its first ids and an answer behind them, and their mask.
ANSWER = ("decoder_input_ids", "decoder_attention_mask")


@dataclass(frozen=True, slots=True)
class Example:
    """One sequence or image, without the batch's dimension: ``input_ids`` int64 [L], ``pixel_values`` float32
    [3, H, W]. What only the task needs (which word a token is of) lies among them under names that no model takes.

    ``truncated`` when something of the user's row was cut off; ``left`` when padding goes in front, because what is
    written follows the last token.
    """

    arrays: Mapping[str, Array]
    truncated: bool = False
    left: bool = False

    @property
    def length(self) -> int:
        """Tokens, or 1 for what has none."""
        ids = self.arrays.get("input_ids")
        return 1 if ids is None else len(ids)

    def cut(self, length: int) -> Example:
        """Exactly ``length`` tokens of one text: the first of them, or all repeated. What has no tokens stays."""
        if "input_ids" not in self.arrays:
            return self
        ids = np.resize(self.arrays["input_ids"], length)
        arrays = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        return Example(arrays, left=self.left)


def collate(examples: Sequence[Example], input_names: Sequence[str]) -> dict[str, Array]:
    """Arrays [B, ...] of the wanted names; tokens are padded on the examples' side with zeros to the longest of them.

    Padding ids are zero: the mask hides them, whatever the tokenizer's own padding id is.
    """
    left = any(example.left for example in examples)
    return {name: stacked([example.arrays[name] for example in examples], left=left) for name in input_names}


def stacked(arrays: Sequence[Array], *, fill: int = 0, left: bool = False) -> Array:
    """[B, ...]: the first axis padded with ``fill`` on the right (or ``left``) where the arrays differ in it."""
    longest = max((1, *(len(a) for a in arrays if a.ndim)))  # an empty text is a token of padding
    if all(a.ndim == 0 or len(a) == longest for a in arrays):
        return np.stack(arrays)
    found = np.full((len(arrays), longest, *arrays[0].shape[1:]), fill, dtype=arrays[0].dtype)
    for row, array in zip(found, arrays, strict=True):
        row[longest - len(array) if left else 0 :][: len(array)] = array
    return found


def unbatched(outputs: Sequence[Array], examples: Sequence[Example]) -> list[Array]:
    """One array an example, of outputs that came a batch at a time in the examples' order.

    What was computed for padding is cut off: [B, L, C] becomes arrays [own L, C].
    """
    rows = [row for batch in outputs for row in batch]
    return [
        row[: example.length] if row.ndim > 1 and "input_ids" in example.arrays else row
        for row, example in zip(rows, examples, strict=True)
    ]
