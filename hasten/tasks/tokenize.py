"""Texts to token arrays: the same code offline and online.

Takes a ``tokenizer.json`` and a length limit, gives integer arrays. Uses the
``tokenizers`` library alone, so a bundle tokenizes without transformers.
Shapes: L tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hasten.models.marian_tokens import HIDDEN
from hasten.records import InputError
from hasten.tasks.chat import ChatTemplate
from hasten.tasks.examples import Example


class Tokenizer:
    """A fast tokenizer with truncation to ``max_length`` and no padding of its own. ``files`` are all that there are of
    it: a chat template may be among them."""

    def __init__(self, tokenizer_json: str, *, max_length: int, files: Mapping[str, bytes] | None = None) -> None:
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
        self._side = (self._tokenizer.truncation or {}).get("direction", "right")
        self._lock, self._files = threading.Lock(), files or {}
        self._chat: ChatTemplate | None = None
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length, strategy="longest_first", direction=self._side)

    def encode(self, text: str, pair: str | None = None) -> Example:
        """One text (or pair) with its special tokens, cut at the limit."""
        found = self._tokenizer.encode(_clean(text), None if pair is None else _clean(pair))
        return _example(found, truncated=bool(found.overflowing))

    def encode_words(self, words: Sequence[str]) -> Example:
        """Words that were split already; ``word_ids`` [L] says which one each token is of, -1 for special tokens."""
        found = self._tokenizer.encode([_clean(word) for word in words], is_pretokenized=True)
        numbers = np.array([-1 if i is None else i for i in found.word_ids], dtype=np.int64)
        return _example(found, truncated=bool(found.overflowing), word_ids=numbers)

    def parts(self, text: str, *, stride: int) -> tuple[Example, ...]:
        """All of a text, in examples of at most the limit; the last ``stride`` tokens of one begin the next.

        ``fresh`` [L] is 1 for tokens of the text that no example before it held.
        """
        specials = len(self._tokenizer.encode("").ids)
        overlap = min(stride, max(0, self.max_length - specials - 1))
        found = self._overflowing(overlap, "longest_first", lambda: self._tokenizer.encode(_clean(text)))
        return tuple(_example(part, fresh=_fresh(part, overlap if number else 0)) for number, part in enumerate(found))

    def continued(self, text: str, choice: str) -> Example:
        """``text`` and then ``choice``, cut at the front when too long; ``fresh`` marks the choice's tokens."""
        full = self._untruncated(_clean(text + choice))
        marks = np.array([int(end > len(text)) for _, end in full.offsets], dtype=np.int64)
        if len(full.ids) <= self.max_length:
            return _example(full, fresh=marks)
        first = full.special_tokens_mask[0]
        kept = [*range(first), *range(len(full.ids) - self.max_length + first, len(full.ids))]
        return Example({n: a[kept] for n, a in _example(full, fresh=marks).arrays.items()}, truncated=True)

    def prompt(self, text: str, *, specials: bool = True) -> Example:
        """A text that is to be gone on with: cut at the front when too long, behind its first special tokens."""
        found = self._untruncated(_clean(text), specials=specials)
        if not found.ids:
            raise InputError("a prompt without a token", expected="some text", remedy="fill or drop such rows")
        first = next((n for n, special in enumerate(found.special_tokens_mask) if not special), 0)
        size, room = len(found.ids), self.max_length
        head = min(first, room - 1)
        kept = [*range(head), *range(size - room + head, size)] if size > room else [*range(size)]
        arrays = {name: array[kept] for name, array in _example(found).arrays.items()}
        return Example(arrays, truncated=size > room, left=True)

    def chat(self, text: str, *, prefix: str = "") -> Example:
        """``prefix`` and ``text`` as a user's message in the checkpoint's template. Too long, ``text`` is shortened at
        its front until all of it fits, so that what the template writes stays whole. Raises InputError when it alone
        does not fit, and without a template."""
        ends = [end for start, end in self._untruncated(_clean(text), specials=False).offsets if end > start]
        cut = 0
        while True:
            kept = _clean(text)[ends[cut - 1] if cut else 0 :].lstrip() if cut else text
            given = self.conversation(prefix + kept)
            over = self.count(given) - self.max_length
            if over <= 0:
                return replace(self.prompt(given, specials=False), truncated=cut > 0)
            if cut >= len(ends):
                raise InputError(
                    f"a chat template of {over + self.max_length} tokens without the user's message",
                    expected=f"at most {self.max_length}, with room for a message",
                    remedy="raise --max-length as far as the model goes, or lower --new-tokens",
                )
            cut = min(len(ends), cut + over)

    def conversation(self, text: str) -> str:
        """What a model of conversations is given when a user says ``text``. Raises InputError without a template."""
        return self._template().render(text)

    def closing_id(self, ends: Sequence[int]) -> int | None:
        """Which of ``ends`` the chat template writes behind an answer, if any."""
        behind = self.ids(self._template().closing())
        return next((i for i in behind if i in ends), None)

    @property
    def writes(self) -> bool:
        """Does it cut texts as the model would write them? One of Marian's knows the source's pieces alone."""
        return not any(piece.startswith(HIDDEN) for piece in self._tokenizer.get_vocab())

    def count(self, text: str) -> int:
        """Tokens of a text by itself, however long, without special ones."""
        return len(self.ids(text))

    def ids(self, text: str) -> list[int]:
        """The ids of a text by itself, however long, without special ones."""
        return list(self._untruncated(_clean(text), specials=False).ids)

    def text(self, ids: Sequence[int]) -> str:
        """What these tokens say, special ones left out."""
        return str(self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True))

    def windows(self, text: str, context: str, *, stride: int) -> tuple[Example, ...]:
        """``text`` with every part of a long ``context``, ``stride`` tokens of which are in the next part too.

        ``offsets`` [L, 2] are the context's characters that a token covers, (-1, -1) for all other tokens. Raises
        InputError when the text leaves no room.
        """
        room = self.max_length - len(self._tokenizer.encode(_clean(text), "").ids)
        if room < 2:
            raise InputError(
                f"a question of more than {self.max_length - 5} tokens ({text[:40]!r})",
                expected=f"one that leaves room for its context within {self.max_length} tokens",
                remedy="shorten it, or raise --max-length as far as the model goes",
            )
        found = self._overflowing(
            min(stride, room - 1), "only_second", lambda: self._tokenizer.encode(_clean(text), _clean(context))
        )
        return tuple(_example(part, offsets=_offsets(part)) for part in found)

    def _overflowing(self, stride: int, strategy: str, encode: Callable[[], Any]) -> list[Any]:
        """What ``encode`` gives, and all that does not fit into it. The setting is the tokenizer's, not the call's."""
        with self._lock:
            self._tokenizer.enable_truncation(self.max_length, stride=stride, strategy=strategy, direction="right")
            try:
                found = encode()
            finally:
                self._tokenizer.enable_truncation(self.max_length, strategy="longest_first", direction=self._side)
        return [found, *found.overflowing]

    def _template(self) -> ChatTemplate:
        self._chat = self._chat or ChatTemplate(self._files)
        return self._chat

    def _untruncated(self, text: str, *, specials: bool = True) -> Any:
        with self._lock:
            self._tokenizer.no_truncation()
            try:
                return self._tokenizer.encode(text, add_special_tokens=specials)
            finally:
                self._tokenizer.enable_truncation(self.max_length, strategy="longest_first", direction=self._side)


def _example(found: Any, *, truncated: bool = False, **more: np.ndarray[Any, Any]) -> Example:
    arrays = {
        "input_ids": np.array(found.ids, dtype=np.int64),
        "attention_mask": np.array(found.attention_mask, dtype=np.int64),
        "token_type_ids": np.array(found.type_ids, dtype=np.int64),
    }
    return Example({**arrays, **more}, truncated=truncated)


def _fresh(found: Any, seen: int) -> np.ndarray[Any, Any]:
    """1 for tokens of the text, but for the first ``seen`` of them."""
    own = 1 - np.array(found.special_tokens_mask, dtype=np.int64)
    return own * (np.cumsum(own) > seen)


def _offsets(found: Any) -> np.ndarray[Any, Any]:
    both = zip(found.offsets, found.sequence_ids, strict=True)
    own = [pair if sequence == 1 else (-1, -1) for pair, sequence in both]
    return np.array(own, dtype=np.int64).reshape(-1, 2)


def _clean(text: str) -> str:
    """Lone surrogates (from broken input) have no UTF-8 form; the library would fail on them."""
    return text.encode("utf-8", "replace").decode("utf-8")
