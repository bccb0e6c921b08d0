"""A tokenizer as GGUF files describe it.

Takes the contents of ``tokenizer.json`` and ``tokenizer_config.json``, gives tokens, their types and what joins them:
merges for a byte-level BPE ("gpt2"), scores for one that SentencePiece made ("llama"). llama.cpp splits text in front
of a byte-level BPE by one of its own rules, each with a name; a tokenizer whose rule has none is refused, as it would
give other tokens there.

A SentencePiece model's scores are not in ``tokenizer.json``; merges are, in the order of those scores. A token's score
here is the place of its first merge, negative, so the same pairs win.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hasten.records import InputError

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_SPACE = "▁"
# Names of splitting rules whose pattern transformers knows; the first of several names for one pattern.
_NAMED = ("llama-bpe", "qwen2", "tekken", "gpt-4o", "qwen35")
# Entry of tokenizer_config.json -> a writer's method
_SPECIAL = {
    "bos_token": "add_bos_token_id", "eos_token": "add_eos_token_id", "unk_token": "add_unk_token_id",
    "pad_token": "add_pad_token_id",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """``kind`` is "gpt2" or "llama"; merges belong to the first, scores to the second."""

    kind: str
    rule: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    space_first: bool = False


def vocabulary_of(tokenizer_json: str, *, size: int) -> Vocabulary:
    """``size`` tokens, as many as the model has rows for. Raises InputError for a tokenizer that a file cannot say."""
    data = json.loads(tokenizer_json)
    model = data["model"]
    if model.get("type") != "BPE":
        raise _unsaid(f"a tokenizer of the kind {model.get('type')}", "a BPE tokenizer")
    ids: dict[str, int] = {**model["vocab"], **{t["content"]: t["id"] for t in data.get("added_tokens", ())}}
    if max(ids.values(), default=-1) >= size:
        raise _unsaid(f"a tokenizer of {max(ids.values()) + 1} tokens for a model of {size}", "as many or fewer")
    sentencepiece = bool(model.get("byte_fallback"))
    rule = "default" if sentencepiece else _rule(data)
    tokens, types = _tokens(data, ids, size=size, sentencepiece=sentencepiece)
    pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model.get("merges", ())]
    if not sentencepiece:
        return Vocabulary("gpt2", rule, tokens, types, merges=tuple(" ".join(pair) for pair in pairs))
    places: dict[str, int] = {}
    for place, pair in enumerate(pairs):
        places.setdefault("".join(pair), place)
    scores = tuple(-float(places.get(token, len(pairs))) for token in tokens)
    return Vocabulary("llama", rule, tokens, types, scores=scores, space_first=_space_first(data))


def add_vocabulary(writer: Any, files: Mapping[str, bytes], *, size: int) -> None:
    """Write all that the file has to say of the tokenizer. Raises InputError."""
    text = files["tokenizer.json"].decode("utf-8")
    found = vocabulary_of(text, size=size)
    writer.add_tokenizer_model(found.kind)
    writer.add_tokenizer_pre(found.rule)
    writer.add_token_list(list(found.tokens))
    if found.scores:
        writer.add_token_scores(list(found.scores))
    writer.add_token_types(list(found.types))
    if found.merges:
        writer.add_token_merges(list(found.merges))
    if found.kind == "llama":
        writer.add_add_space_prefix(found.space_first)
    config = json.loads(files.get("tokenizer_config.json", b"{}"))
    places = {token: number for number, token in enumerate(found.tokens)}
    special = {name: places.get(_text(config.get(name))) for name in _SPECIAL}
    for name, number in special.items():
        if number is not None:
            getattr(writer, _SPECIAL[name])(number)
    first, last = _edges(text)
    writer.add_add_bos_token(first is not None and first == special["bos_token"])
    writer.add_add_eos_token(last is not None and last == special["eos_token"])
    template = config.get("chat_template") or files.get("chat_template.jinja", b"").decode("utf-8")
    if isinstance(template, str) and template:
        writer.add_chat_template(template)


def _tokens(
    data: Mapping[str, Any], ids: Mapping[str, int], *, size: int, sentencepiece: bool
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Every row of the table; what has no token is a placeholder, as llama.cpp's converter writes it."""
    tokens = [f"[PAD{number}]" for number in range(size)]
    types = [_UNUSED] * size
    unknown = data["model"].get("unk_token")
    for token, number in ids.items():
        tokens[number] = token
        types[number] = _NORMAL
        if sentencepiece and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            types[number] = _BYTE
    for added in data.get("added_tokens", ()):
        types[added["id"]] = _CONTROL if added.get("special") else _USER_DEFINED
        if sentencepiece and not added.get("special"):  # matched in the text, before spaces are marked
            tokens[added["id"]] = added["content"].replace(_SPACE, " ")
    if sentencepiece and unknown in ids:
        types[ids[unknown]] = _UNKNOWN
    return tuple(tokens), tuple(types)


def _rule(data: Mapping[str, Any]) -> str:
    """The name of the way text is split in front of a byte-level BPE."""
    found = data.get("pre_tokenizer") or {}
    steps = found.get("pretokenizers", [found])
    kinds = [step.get("type") for step in steps]
    normalizer = (data.get("normalizer") or {}).get("type")
    if "ByteLevel" not in kinds or normalizer not in (None, "NFC") or steps[-1].get("add_prefix_space"):
        raise _unsaid(f"a BPE tokenizer of {kinds} behind {normalizer}", "a byte-level one, or one of SentencePiece")
    if kinds == ["ByteLevel"]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"]:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

        pattern = (steps[0].get("pattern") or {}).get("Regex")
        named = next((name for name in _NAMED if GGUF_PRE_TOKENIZER_SPLITS.get(name) == pattern), None)
        if pattern and named is not None:
            return named
    raise _unsaid(f"a tokenizer that splits text by {json.dumps(found)[:200]}", f"gpt-2, smollm, {', '.join(_NAMED)}")


def _space_first(data: Mapping[str, Any]) -> bool:
    """Does a text begin with a space that is not in it?"""
    normalizer, before = data.get("normalizer") or {}, data.get("pre_tokenizer") or {}
    steps = [*normalizer.get("normalizers", [normalizer]), *before.get("pretokenizers", [before])]
    return any(
        step.get("type") == "Prepend" or (step.get("type") == "Metaspace" and step.get("prepend_scheme") != "never")
        for step in steps
    )


def _edges(text: str) -> tuple[int | None, int | None]:
    """The special tokens that are put in front of a text and behind it."""
    from tokenizers import Tokenizer

    found = Tokenizer.from_str(text).encode("a")
    mask = found.special_tokens_mask
    if not mask or all(mask):
        return None, None
    return (found.ids[0] if mask[0] else None), (found.ids[-1] if mask[-1] else None)


def _text(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


def _unsaid(got: str, expected: str) -> InputError:
    return InputError(
        f"{got}, which a GGUF file has no words for", expected=expected,
        remedy="export it --to hf and use llama.cpp's own converter",
    )  # fmt: skip
