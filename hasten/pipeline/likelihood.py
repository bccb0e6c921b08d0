"""Likelihoods of texts by a language model, in the form that evaluation harnesses ask for.

Takes a model that gives the log-probability of every next token and the likeliest one ([B, L, 2], as sessions of
language models do), and a tokenizer. Gives sums over continuations, over whole texts, and texts that the model goes on
with. Knows no harness.

Legend: B sequences, L tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hasten.records import InputError

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
Run = Callable[[Arrays], Array]
# Token ids of a prompt, how many to write at most, the id that ends a text -> ids, one by one, up to an end
Write = Callable[[Sequence[int], int, int | None], Iterator[int]]
Pair = tuple[Sequence[int], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Reader:
    """What a harness may ask. ``run`` is ``None`` for a model that only writes, ``write`` for one that only reads."""

    words: Words
    run: Run | None
    write: Write | None
    max_length: int
    batch: int = 8

    def likelihoods(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """For each (context, continuation) the sum of the continuation's log-probabilities, and whether each of its
        tokens is the likeliest. Contexts that are too long lose their front. Raises InputError."""
        if self.run is None:
            raise _cannot("give likelihoods", "a bundle of language-modeling or multiple-choice, or a checkpoint")
        whole = [self._cut(*pair) for pair in pairs]
        order = sorted(range(len(whole)), key=lambda i: -len(whole[i][0]))
        found: dict[int, tuple[float, bool]] = {}
        for start in range(0, len(order), self.batch):
            some = order[start : start + self.batch]
            outputs = self.run(padded([whole[i][0] for i in some]))
            found |= {i: _said(outputs[row], *whole[i]) for row, i in enumerate(some)}
        return [found[i] for i in range(len(pairs))]

    def rolling(self, text: str) -> float:
        """The sum over all tokens of a text, read through windows that overlap by one token."""
        # ``first`` stands in front already; what else the tokenizer puts around a text is not the text's.
        tokens = self.words.encode(text, special=False)
        windows = rolling_windows(tokens, first=self.words.first, most=self.max_length - 1)
        return sum(said for said, _ in self.likelihoods(windows))

    def written(self, prompt: str, *, until: Sequence[str], tokens: int) -> str:
        """What the model writes after ``prompt``, up to the first of ``until``. Raises InputError."""
        if self.write is None:
            raise _cannot("write texts", "a bundle of text-generation, or a checkpoint")
        room = self.max_length - tokens
        if room < 1:
            raise InputError(
                f"{tokens} new tokens for a model of {self.max_length}", expected="fewer of them than that",
                remedy="raise --max-length as far as the model goes, or leave the task out",
            )  # fmt: skip
        until = [stop for stop in until if stop]  # the empty text would end every answer
        ids: list[int] = []
        text = ""
        begun = self.words.encode(prompt)[-room:] or [self.words.first]
        for token in self.write(begun, tokens, self.words.last):
            ids.append(token)
            text = self.words.decode(ids)
            if any(stop in text for stop in until):
                break
        ends = [text.index(stop) for stop in until if stop in text]
        return text[: min(ends)] if ends else text

    def _cut(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[list[int], int]:
        """The tokens that are read, and how many of the last ones count."""
        if not context or len(continuation) >= self.max_length:
            raise InputError(
                f"a continuation of {len(continuation)} tokens after {len(context)}",
                expected=f"a context, and both within {self.max_length} tokens",
                remedy="raise --max-length as far as the model goes, or leave the task out",
            )
        return [*context, *continuation][-self.max_length :], len(continuation)


class Words:
    """A tokenizer with the ids that begin and end a text, as ``tokenizer_config.json`` names them.

    ``first`` stands in front of what has no context: the token that begins a text, else the one that ends it.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        """Raises InputError for files without a token of either kind."""
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode("utf-8"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        config = json.loads(files.get("tokenizer_config.json", b"{}"))
        self._begin = _text(config.get("bos_token"))
        begin, self.last = (self._id(_text(config.get(name))) for name in ("bos_token", "eos_token"))
        first = self.last if begin is None else begin
        if first is None:
            raise InputError(
                "the tokenizer names no token that begins or ends a text", expected="bos_token or eos_token",
                remedy="add them to tokenizer_config.json",
            )  # fmt: skip
        self.first: int = first

    def encode(self, text: str, *, special: bool | None = None) -> list[int]:
        """Token ids; with special tokens unless the text begins with one, or as ``special`` says."""
        wanted = not (self._begin and text.startswith(self._begin)) if special is None else special
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=wanted).ids
        return found

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids)))

    def _id(self, token: str) -> int | None:
        found: int | None = self._tokenizer.token_to_id(token) if token else None
        return found


def rolling_windows(tokens: Sequence[int], *, first: int, most: int) -> list[Pair]:
    """Every token once as part of a continuation of at most ``most``, with all the context that then fits."""
    whole = [first, *tokens]
    windows: list[Pair] = []
    for start in range(0, len(tokens), most):
        end = min(start + most, len(tokens))
        window = whole[max(0, end - most) : end + 1]
        windows.append((window[: len(window) - (end - start)], window[len(window) - (end - start) :]))
    return windows


def padded(sequences: Sequence[Sequence[int]]) -> Arrays:
    """Token arrays [B, L], padded on the right."""
    longest = max(map(len, sequences))
    ids, mask = (np.zeros((len(sequences), longest), dtype=np.int64) for _ in range(2))
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def _said(outputs: Array, sequence: Sequence[int], counted: int) -> tuple[float, bool]:
    """``outputs`` [L, 2] of one row; position t speaks of token t + 1."""
    place = slice(len(sequence) - counted - 1, len(sequence) - 1)
    likeliest = np.array_equal(outputs[place, 1].astype(np.int64), sequence[len(sequence) - counted :])
    return float(outputs[place, 0].sum(dtype=np.float64)), bool(likeliest)


def _text(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


def _cannot(what: str, expected: str) -> InputError:
    return InputError(f"this model cannot {what}", expected=expected, remedy="choose other tasks, or give one of these")
