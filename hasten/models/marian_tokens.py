"""Marian's tokenizers, which come as two sentencepiece models and one vocabulary, as one ``tokenizer.json``.

Takes a checkpoint's folder, gives the files. Texts are cut as ``source.spm`` cuts them and numbered as ``vocab.json``
numbers pieces; what only ``target.spm`` knows has its number too, under a name that no text contains, and is read back
without it. sentencepiece's files are protocol buffers, of which a handful of fields are needed here.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten.records import InputError

SOURCE, VOCABULARY = "source.spm", "vocab.json"
_SETTINGS = "tokenizer_config.json"
_END, _UNKNOWN, _PADDING = "</s>", "<unk>", "<pad>"
HIDDEN = "\ue000"  # private use: before pieces that no text is cut into
_USUAL_LIMIT = 512
_UNIGRAM, _NORMAL, _OWN = 1, 1, 4  # of sentencepiece's enumerations; the last is a symbol that its user added


@dataclass(frozen=True, slots=True)
class _Pieces:
    """Scores by piece, and how texts are normalised first."""

    scores: dict[str, float]
    characters: bytes


def is_marian(folder: Path) -> bool:
    """Are these Marian's files, and no ``tokenizer.json`` among them?"""
    names = (SOURCE, VOCABULARY)
    return all((folder / name).is_file() for name in names) and not (folder / "tokenizer.json").is_file()


def marian_files(folder: Path) -> tuple[dict[str, bytes], int]:
    """``tokenizer.json`` and the settings, and the length limit. Raises InputError for files of another form."""
    try:
        settings = json.loads((folder / _SETTINGS).read_bytes()) if (folder / _SETTINGS).is_file() else {}
        ids = {str(piece): int(i) for piece, i in json.loads((folder / VOCABULARY).read_bytes()).items()}
        pieces = _read((folder / SOURCE).read_bytes())
    except (ValueError, AttributeError, IndexError, struct.error) as error:
        raise _unusable(folder, str(error) or "cut short") from error
    if settings.get("separate_vocabs"):
        raise _unusable(folder, "source and target have vocabularies of their own")
    if sorted(ids.values()) != list(range(len(ids))) or not {_END, _UNKNOWN} <= set(ids):
        raise _unusable(folder, f"{VOCABULARY} has gaps, or lacks {_END} or {_UNKNOWN}")
    limit = int(min(settings.get("model_max_length") or _USUAL_LIMIT, _USUAL_LIMIT))
    made = _tokenizer(ids, pieces)
    made.enable_truncation(limit)
    return {"tokenizer.json": made.to_str().encode(), _SETTINGS: json.dumps(settings).encode()}, limit


def _tokenizer(ids: dict[str, int], pieces: _Pieces) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    special = [p for p in ids if p in (_END, _UNKNOWN, _PADDING) or (p.startswith(">>") and p.endswith("<<"))]
    # A score of 0 keeps what is not cut into from lowering that of unknown letters, which is below the lowest.
    table = [
        (piece if piece in pieces.scores or piece in special else HIDDEN + piece, pieces.scores.get(piece, 0.0))
        for piece in sorted(ids, key=ids.__getitem__)
    ]
    made = Tokenizer(models.Unigram(table, unk_id=ids[_UNKNOWN], byte_fallback=False))
    first = [normalizers.Precompiled(pieces.characters)] if pieces.characters else []
    made.normalizer = normalizers.Sequence([*first, normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()])
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.post_processor = processors.TemplateProcessing(
        single=f"$A {_END}", pair=f"$A $B {_END}", special_tokens=[(_END, ids[_END])]
    )
    made.decoder = decoders.Sequence([decoders.Replace(HIDDEN, ""), decoders.Metaspace(prepend_scheme="always")])
    made.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in special])
    return made


def _read(content: bytes) -> _Pieces:
    """Of a ModelProto: pieces (1), the trainer's settings (2) and the normaliser's (3). Raises ValueError."""
    scores: dict[str, float] = {}
    characters = b""
    for number, value in _fields(content):
        if number == 1:
            own = dict(_fields(value))
            if own.get(3, _NORMAL) in (_NORMAL, _OWN):
                scores[own[1].decode("utf-8")] = struct.unpack("<f", own.get(2, bytes(4)))[0]
        elif number == 2 and dict(_fields(value)).get(3, _UNIGRAM) != _UNIGRAM:
            raise ValueError("its pieces are not a unigram model's")
        elif number == 3:
            characters = dict(_fields(value)).get(2, b"")
    if not scores:
        raise ValueError("it holds no pieces")
    return _Pieces(scores, characters)


def _fields(content: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field: whole numbers, or the bytes. Raises ValueError for what is no such message."""
    place = 0
    while place < len(content):
        key, place = _number(content, place)
        kind = key & 7
        if kind == 0:
            value: Any
            value, place = _number(content, place)
        else:
            size, place = _number(content, place) if kind == 2 else ({1: 8, 5: 4}.get(kind, -1), place)
            if size < 0 or place + size > len(content):
                raise ValueError("it is no sentencepiece model, or cut short")
            value, place = content[place : place + size], place + size
        yield key >> 3, value


def _number(content: bytes, place: int) -> tuple[int, int]:
    """A whole number in groups of seven bits, and where it ends."""
    found = 0
    for shift in range(0, 70, 7):
        found |= (content[place] & 0x7F) << shift
        place += 1
        if content[place - 1] < 0x80:
            return found, place
    raise ValueError("a number without an end")


def _unusable(folder: Path, why: str) -> InputError:
    return InputError(
        f"the tokenizer of {folder} cannot be read as Marian's ({why})",
        expected=f"{SOURCE} (a unigram model) and one {VOCABULARY} for both languages, or a tokenizer.json",
        remedy="save a fast tokenizer into the folder",
    )
