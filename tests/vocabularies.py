"""Small trained tokenizers of every kind that a vocabulary can be trimmed in."""

from __future__ import annotations

import json
import random
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

KINDS = ("byte-level", "byte-fallback", "wordpiece", "unigram")
_SYLLABLES = ("ka", "ro", "mi", "ten", "sul", "ba", "lo", "ver", "in", "da", "é", "ß", "qu", "o", "xi", "30", "7", "-")


def sentences(*, count: int, seed: int = 0) -> list[str]:
    """Words that share many parts, so that merges are deep and pieces overlap."""
    chance = random.Random(seed)
    words = ["".join(chance.choices(_SYLLABLES, k=chance.randint(1, 5))) for _ in range(60)]
    return [" ".join(chance.choices(words, k=chance.randint(3, 12))) + chance.choice(".!?") for _ in range(count)]


def trained(kind: str, *, size: int = 400, count: int = 300) -> dict[str, Any]:
    """A tokenizer.json with a beginning, an end, padding and placeholders, trained on :func:`sentences`."""
    maker = {"byte-level": _byte_level, "byte-fallback": _byte_fallback, "wordpiece": _wordpiece, "unigram": _unigram}
    made: dict[str, Any] = json.loads(maker[kind](sentences(count=count), size).to_str())
    return made


def opened(content: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(content))


def _byte_level(texts: list[str], size: int) -> Tokenizer:
    own = Tokenizer(models.BPE())
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", *(f"<|reserved_special_token_{i}|>" for i in range(5))]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    own.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size + 256, special_tokens=special, initial_alphabet=alphabet)
    )
    own.add_tokens(["<tool>"])
    own.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A </s> $B", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return own


def _byte_fallback(texts: list[str], size: int) -> Tokenizer:
    """As SentencePiece writes it: spaces are letters, and what is unknown is spelt in bytes."""
    own = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    own.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    own.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    letters = [f"<0x{number:02X}>" for number in range(256)]
    own.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, special_tokens=["<unk>", "<s>", "</s>"], max_token_length=12)
    )
    content = json.loads(own.to_str())
    words = content["model"]["vocab"]
    words |= {letter: len(words) + number for number, letter in enumerate(letters)}
    again = Tokenizer.from_str(json.dumps(content))
    again.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", words["<s>"])])
    again.enable_padding(pad_id=words["</s>"], pad_token="</s>")
    return again


def _wordpiece(texts: list[str], size: int) -> Tokenizer:
    own = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    own.normalizer = normalizers.BertNormalizer()
    own.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    own.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"[unused{i}]" for i in range(5))]
    own.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=size, special_tokens=special))
    ids = {word: own.token_to_id(word) for word in ("[CLS]", "[SEP]")}
    own.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    return own


def _unigram(texts: list[str], size: int) -> Tokenizer:
    own = Tokenizer(models.Unigram())
    own.normalizer = normalizers.NFKC()
    own.pre_tokenizer = pre_tokenizers.Metaspace()
    own.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    own.train_from_iterator(
        texts, trainers.UnigramTrainer(vocab_size=size, special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    own.add_special_tokens(["<mask>"])
    numbers = [(word, own.token_to_id(word)) for word in ("<s>", "</s>")]
    own.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=numbers
    )
    return own
