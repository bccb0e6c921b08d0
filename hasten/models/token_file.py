"""A smaller vocabulary in a tokenizer.json: the tokens that texts use, and whatever keeps every text writable.

Takes the parsed file and the ids that texts use, gives the file with fewer tokens and the old ids in their new order.
What the old file made of those texts the new one makes of them too, token for token; other texts are written with
more and shorter tokens. Source: the vocabulary trimming of Abdaoui et al. 2020, "Load What You Need", with merges.

Why the same tokens: what stays is part of what was there, with its order of merges, scores and lengths.
* BPE joins the two neighbours whose merge comes first. Every token is made inside its own letters, so with the tokens
  on the way to a used one (:func:`steps`) all joins of the old file still happen, and no other can.
* WordPiece takes the longest match, Unigram the best path: the old choice is still there, among fewer others.

Why any text can be written: all bytes stay, where the vocabulary spells what it does not know in bytes; every single
character stays where it does not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from hasten.records import Rejected

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# Placeholders that the vocabulary itself calls unused: <unused7>, [unused12], <|reserved_special_token_5|>.
_PLACEHOLDER = re.compile(r"\W*(unused|reserved)\w*\W*")
_BYTES = 256
_ASCII = frozenset(map(chr, range(33, 127))) | {"\u2581"}  # the sign for a space is in no byte

Parsed = dict[str, Any]


@dataclass(frozen=True, slots=True)
class TrimmedFile:
    """The parsed tokenizer.json, and ``kept[new] = old``."""

    content: Parsed
    kept: tuple[int, ...]


def trimmed(content: Parsed, *, used: Iterable[int], needed: Iterable[int], rows: int) -> TrimmedFile:
    """The file with the tokens that are ``used`` by texts, ``needed`` by the model, or asked for by the file itself.

    Added tokens stay, but for placeholders and for those that the model has no row for (it has ``rows``). Raises
    Rejected for a vocabulary of whole words, and for a used token without a row.
    """
    words = vocabulary(content)
    names = {number: word for word, number in words.items()}
    added = {int(token["id"]): str(token["content"]) for token in content.get("added_tokens") or ()}
    numbers = {**{word: number for number, word in added.items()}, **words}
    missing = sorted({i for i in used if i >= rows})
    if missing:
        raise Rejected("vocabulary", f"the texts use the ids {missing[:5]}, and the model has {rows} rows")
    known = names.keys() | added.keys()
    unspelt = sorted(i for i in needed if i not in known and i < rows)  # rows that no text leads to
    wanted = {int(i) for i in (*used, *needed)} & known
    wanted |= {i for i, word in added.items() if not _PLACEHOLDER.fullmatch(word)}
    wanted |= {numbers[name] for name in named_tokens(content) if name in numbers}
    wanted |= _KINDS[_kind(content)](content["model"], words, {names[i] for i in wanted if i in names})
    own = [i for i in sorted(wanted) if i in names and i < rows]
    # The library numbers added tokens that are no words of the model behind these.
    others = [i for i in sorted(wanted) if i not in names and i < rows]
    kept = (*own, *others, *unspelt)
    return TrimmedFile(_rewritten(content, {old: new for new, old in enumerate(kept)}), kept)


def vocabulary(content: Parsed) -> dict[str, int]:
    """Token -> id, without the added ones."""
    found = content["model"]["vocab"]
    return dict(found) if isinstance(found, dict) else {word: number for number, (word, _) in enumerate(found)}


def named_tokens(content: Parsed) -> set[str]:
    """Tokens that the file names outside its vocabulary: the unknown one, padding, and those put around a text."""
    model, found = content["model"], set()
    if isinstance(model.get("unk_token"), str):
        found.add(model["unk_token"])
    if isinstance(model.get("unk_id"), int):
        found.add(model["vocab"][model["unk_id"]][0])
    if content.get("padding"):
        found.add(content["padding"]["pad_token"])
    for part in _processors(content.get("post_processor")):
        found |= {part[name][0] for name in ("sep", "cls") if name in part}
        found |= {token for entry in part.get("special_tokens", {}).values() for token in entry["tokens"]}
    return found


def steps(word: str, ranks: Mapping[tuple[str, str], int], *, suffix: str = "") -> set[str]:
    """Every token on the way from single characters to ``word`` by the merges of these ``ranks``."""
    letters = list(word.removesuffix(suffix)) if suffix else list(word)
    if suffix and letters and word.endswith(suffix):
        letters[-1] += suffix
    found = set(letters)
    while len(letters) > 1:
        pairs = [(ranks[pair], at) for at, pair in enumerate(pairwise(letters)) if pair in ranks]
        if not pairs:
            break
        _, at = min(pairs)
        letters[at : at + 2] = [letters[at] + letters[at + 1]]
        found.add(letters[at])
    return found


def _bpe(model: Parsed, words: Mapping[str, int], wanted: set[str]) -> set[int]:
    if model.get("continuing_subword_prefix"):
        raise Rejected("vocabulary", "this BPE marks the inside of words, which trimming does not know")
    suffix = model.get("end_of_word_suffix") or ""
    ranks = {pair: rank for rank, pair in enumerate(map(_pair, model["merges"]))}
    found = {step for word in wanted for step in steps(word, ranks, suffix=suffix)}
    found |= _spelling(model, words, single=lambda word: len(word.removesuffix(suffix) if suffix else word) == 1)
    return {words[word] for word in found if word in words}


def _wordpiece(model: Parsed, words: Mapping[str, int], wanted: set[str]) -> set[int]:
    prefix = model["continuing_subword_prefix"]
    found = _spelling(model, words, single=lambda word: len(word.removeprefix(prefix)) == 1)
    # A character that is nowhere alone can only be written by the pieces that hold it.
    alone = frozenset(found)
    for word in [word for word in words if not _PLACEHOLDER.fullmatch(word)]:
        inner = word.removeprefix(prefix)
        parts = [prefix + c if at or word != inner else c for at, c in enumerate(inner)]
        if not alone.issuperset(parts):
            found.add(word)
    return {words[word] for word in (*found, *wanted)}


def _unigram(model: Parsed, words: Mapping[str, int], wanted: set[str]) -> set[int]:
    found = _spelling(model, words, single=lambda word: len(word) == 1)
    if not _spells_bytes(model, words):
        found |= {word for word in words if not found.issuperset(word) and not _PLACEHOLDER.fullmatch(word)}
    # What is unknown costs a fixed sum more than the worst piece: without it, other paths would win.
    found.add(min(model["vocab"], key=lambda piece: piece[1])[0])
    return {words[word] for word in (*found, *wanted)}


def _whole_words(_model: Parsed, _words: Mapping[str, int], _wanted: set[str]) -> set[int]:
    raise Rejected("vocabulary", "a vocabulary of whole words cannot write a word that it has lost")


_KINDS: Mapping[str, Callable[[Parsed, Mapping[str, int], set[str]], set[int]]] = {
    "BPE": _bpe, "WordPiece": _wordpiece, "Unigram": _unigram, "WordLevel": _whole_words,
}  # fmt: skip


def _kind(content: Parsed) -> str:
    kind = str(content["model"].get("type"))
    if kind not in _KINDS:
        raise Rejected("vocabulary", f"a tokenizer of type {kind} cannot be trimmed; known: {', '.join(_KINDS)}")
    return kind


def _spells_bytes(model: Parsed, words: Mapping[str, int]) -> bool:
    return bool(model.get("byte_fallback")) and sum(bool(_BYTE.fullmatch(word)) for word in words) == _BYTES


def _spelling(model: Parsed, words: Mapping[str, int], *, single: Callable[[str], bool]) -> set[str]:
    """What any text can be written in: bytes and ASCII, or every single character (of a byte-level BPE, its bytes)."""
    if _spells_bytes(model, words):
        return {word for word in words if _BYTE.fullmatch(word) or word in _ASCII}
    return {word for word in words if single(word)}


def _pair(merge: Any) -> tuple[str, str]:
    """Merges are pairs, in older files with a space between."""
    first, second = merge.split(" ", 1) if isinstance(merge, str) else merge
    return first, second


def _processors(found: Any) -> list[Parsed]:
    if not found:
        return []
    return [part for own in found["processors"] for part in _processors(own)] if "processors" in found else [found]


def _rewritten(content: Parsed, numbers: Mapping[int, int]) -> Parsed:
    """A copy with only the ids in ``numbers``, by their new numbers."""
    model = dict(content["model"])
    words = {word: numbers[number] for word, number in vocabulary(content).items() if number in numbers}
    if isinstance(model["vocab"], dict):
        model["vocab"] = dict(sorted(words.items(), key=lambda item: item[1]))
    else:
        model["vocab"] = [piece for number, piece in enumerate(model["vocab"]) if number in numbers]
        if isinstance(model.get("unk_id"), int):
            model["unk_id"] = numbers[model["unk_id"]]
    if "merges" in model:
        pairs = [(merge, _pair(merge)) for merge in model["merges"]]
        model["merges"] = [merge for merge, (a, b) in pairs if a in words and b in words and a + b in words]
    added = [{**t, "id": numbers[t["id"]]} for t in content.get("added_tokens") or () if t["id"] in numbers]
    made = {**content, "model": model, "added_tokens": sorted(added, key=lambda token: int(token["id"]))}
    if content.get("padding"):
        made["padding"] = {**content["padding"], "pad_id": numbers[content["padding"]["pad_id"]]}
    made["post_processor"] = _processor(content.get("post_processor"), numbers)
    return made


def _processor(found: Any, numbers: Mapping[int, int]) -> Any:
    if not found:
        return found
    if "processors" in found:
        return {**found, "processors": [_processor(part, numbers) for part in found["processors"]]}
    made = {**found, **{n: [found[n][0], numbers[found[n][1]]] for n in ("sep", "cls") if n in found}}
    if "special_tokens" in found:
        made["special_tokens"] = {
            name: {**entry, "ids": [numbers[i] for i in entry["ids"]]}
            for name, entry in found["special_tokens"].items()
        }
    return made
