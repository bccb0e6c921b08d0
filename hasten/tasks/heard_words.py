"""The words of a text in any script, for scores that count words.

Takes a text, gives its words without punctuation. Combining marks belong to the letter before them (Devanagari's vowels
are marks); scripts that are written without spaces have no words here, so each of their characters stands alone.
"""

from __future__ import annotations

import unicodedata

# Thai and Lao; kana; Chinese characters and their two extensions of old; Khmer and Burmese.
_WITHOUT_SPACES = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF), (0x20000, 0x2FA1F),
)  # fmt: skip
_APOSTROPHES = str.maketrans("\u2018\u2019\u02bc", "'''")


def heard(text: str) -> str:
    """What of a text can be heard: no case, and no punctuation but within words."""
    plain = unicodedata.normalize("NFKC", text).translate(_APOSTROPHES).casefold()
    return " ".join("".join(c if _of_a_word(c) or c == "'" else " " for c in plain).split())


def words(text: str) -> list[str]:
    """Words in lower case; in a script without spaces, characters with their marks."""
    plain = unicodedata.normalize("NFKC", text).lower()
    return "".join(_apart(c) if _of_a_word(c) else " " for c in plain).split()


def _of_a_word(c: str) -> bool:
    return c.isalnum() or unicodedata.category(c).startswith("M")


def _apart(c: str) -> str:
    """A space before what stands alone, none before its marks."""
    alone = any(first <= ord(c) <= last for first, last in _WITHOUT_SPACES)
    return f" {c}" if alone and not unicodedata.category(c).startswith("M") else c
