"""Token classification: a tag for every word, and the entities that the tags spell.

The metric is F1 over whole entities (seqeval's, the rules of CoNLL's script), with precision, recall and the share of
right tags beside it; all in points. Words are what white space separates, at training, scoring and prediction alike.
Legend: N rows, W words of the longest row, L tokens, C labels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from hasten.records import Columns, InputError, Quality
from hasten.tasks.examples import Example
from hasten.tasks.one_label import map_labels, shares
from hasten.tasks.rows import Rows
from hasten.tasks.tagged_text import OUTSIDE, Tags, read_tagged
from hasten.tasks.task import Array, Item, few_rows_warning

# First, inner, last and only word of an entity; the last two have a second name in BILOU.
_LETTERS = {"B-": "B-", "I-": "I-", "E-": "E-", "S-": "S-", "L-": "E-", "U-": "S-"}


@dataclass(frozen=True, slots=True)
class TokenClassification:
    """Outputs are the logits of each word's first token, [N, W, C] in the order of ``labels``; zeros stand for words
    beyond the row's end and for those that the model did not see, which count as outside every entity."""

    name: str = "token-classification"
    head: str = "ForTokenClassification"
    auto: str = "AutoModelForTokenClassification"
    labelled: bool = True
    per_token: bool = True
    foretells: bool = False
    aliases: Mapping[str, str] = field(default_factory=dict)

    def read(self, source: str | Path, *, columns: Columns, labels_wanted: bool = True) -> Rows:
        return read_tagged(source, columns=columns, labels_wanted=labels_wanted)

    def wrap(self, checkpoint: Any) -> Any:
        return self.wrap_model(checkpoint.model, pooling=None, normalize=False)

    def wrap_model(self, model: Any, *, pooling: str | None, normalize: bool) -> Any:
        del pooling, normalize
        from hasten.tasks.wrappers import TokensWrapper

        return TokensWrapper(model)

    def encode(self, processor: Any, item: Item) -> tuple[Example, ...]:
        return (processor.encode_words(item["text"].split()),)

    def targets(self, rows: Rows, labels: Sequence[str], encoded: Sequence[Sequence[Example]]) -> list[Array] | None:
        """int64 [L] a row: the class of each word's first token, nothing for all other tokens."""
        if rows.labels is None:
            return None
        from hasten.tasks.wrappers import IGNORED

        number = {name: i for i, name in enumerate(labels)}
        made = []
        for tags, (example,) in zip(rows.labels, encoded, strict=True):
            words, first = first_tokens(example)
            target = np.full(example.length, IGNORED, dtype=np.int64)
            target[first] = [number[tags[word]] for word in words]
            made.append(target)
        return made

    def outputs(self, raw: Sequence[Array], encoded: Sequence[Sequence[Example]]) -> Array:
        seen = [first_tokens(example) for (example,) in encoded]
        width = max((int(words[-1]) + 1 for words, _ in seen if len(words)), default=0)
        made = np.zeros((len(raw), width, raw[0].shape[-1]), dtype=raw[0].dtype)
        for row, logits, (words, first) in zip(made, raw, seen, strict=True):
            row[words] = logits[first]
        return made

    def check(self, rows: Rows, labels: Sequence[str]) -> tuple[Rows, tuple[str, ...]]:
        return check_tags(rows, labels)

    def comparable(self, outputs: Array) -> Array:
        return outputs

    def score(self, outputs: Array, rows: Rows, labels: Sequence[str], *, reference: Array | None) -> Quality:
        """Resampling calls this a thousand times on the same rows, so what is counted in a row is kept."""
        del reference
        truth, names = rows.labels or (), tuple(labels)
        guess = tags_of(outputs, [len(tags) for tags in truth], labels)
        counts = [_counts(right, said, names) for right, said in zip(truth, guess, strict=True)]
        found, said, wanted, agreed = (sum(column) for column in zip(*counts, strict=True))
        others = {
            "precision": 100.0 * found / max(1, said),
            "recall": 100.0 * found / max(1, wanted),
            "token_accuracy": 100.0 * agreed / max(1, sum(map(len, truth))),
        }
        return Quality("seqeval_f1", 100.0 * 2 * found / max(1, said + wanted), len(rows.texts), others)

    def per_row(self, outputs: Array, rows: Rows, labels: Sequence[str], *, reference: Array | None) -> Array | None:
        """F1 over all entities is no mean of the rows'."""
        del outputs, rows, labels, reference
        return None

    def predictions(self, outputs: Array, rows: Rows, labels: Sequence[str]) -> tuple[list[str], list[str]] | None:
        guess = tags_of(outputs, [len(text.split()) for text in rows.texts], labels)
        return [" ".join(tags) for tags in guess], [" ".join(tags) for tags in rows.labels or ()]

    def decode(self, outputs: Array, rows: Rows, labels: Sequence[str]) -> list[Any]:
        """``{"entities": [{"label", "text", "start", "end", "score"}], "tags"}``: what each row's text holds from
        character ``start`` up to ``end``, with the mean probability of its words' tags; and every word's tag."""
        standard, best = standard_tags(labels), shares(outputs).max(axis=2)
        places = [[found.span() for found in re.finditer(r"\S+", text)] for text in rows.texts]
        guess = tags_of(outputs, [len(own) for own in places], labels)
        records = []
        for text, tags, own, share in zip(rows.texts, guess, places, best, strict=True):
            entities = [
                {
                    "label": name,
                    "text": text[own[first][0] : own[last][1]],
                    "start": own[first][0],
                    "end": own[last][1],
                    "score": float(share[first : last + 1].mean()),
                }
                for name, first, last in entities_of([standard[tag] for tag in tags])
            ]
            records.append({"entities": entities, "tags": list(tags)})
        return records


def first_tokens(example: Example) -> tuple[Array, Array]:
    """The words that have a token, in order, and where the first token of each is."""
    words, first = np.unique(example.arrays["word_ids"], return_index=True)
    return words[words >= 0], first[words >= 0]


def tags_of(outputs: Array, lengths: Sequence[int], labels: Sequence[str]) -> list[Tags]:
    """The best label of each of the row's words; outside where there are no logits. ``outputs`` [N, W, C]."""
    names = np.array([*labels, OUTSIDE], dtype=object)
    best = np.where(outputs.any(axis=2), outputs.argmax(axis=2), len(labels))
    rows = zip(names[best].tolist(), lengths, strict=True)
    return [(*own[:length], *[OUTSIDE] * (length - len(own))) for own, length in rows]


def standard_tags(labels: Sequence[str]) -> Mapping[str, str]:
    """Each label as B-, I-, E- or S- and a kind, or O: what seqeval reads.

    Where no label has a prefix, neighbours of one kind are one entity. Among labels with prefixes, those without (such
    as X for the rest of a word) are outside.
    """
    made = {OUTSIDE: OUTSIDE}
    plain = not any(label[:2] in ("B-", "I-") for label in labels)
    for label in labels:
        if label == OUTSIDE or plain:
            made[label] = OUTSIDE if label == OUTSIDE else "I-" + label
        else:
            made[label] = _LETTERS[label[:2]] + label[2:] if label[:2] in _LETTERS else OUTSIDE
    return made


def entities_of(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Kind, first and last word of every entity, of tags as :func:`standard_tags` gives them.

    The rules of CoNLL's script: an entity also begins without B- where its kind changes or nothing precedes. They are
    seqeval's, which a server need not have installed.
    """
    found: list[tuple[str, int, int]] = []
    start, previous = 0, OUTSIDE
    for number, tag in enumerate([*tags, OUTSIDE]):
        goes_on = OUTSIDE not in (previous, tag) and previous[2:] == tag[2:]
        if goes_on and tag[0] not in "BS" and previous[0] not in "ES":
            previous = tag
            continue
        if previous != OUTSIDE:
            found.append((previous[2:], start, number - 1))
        start, previous = number, tag
    return found


@lru_cache(maxsize=2**15)
def _counts(truth: Tags, guess: Tags, labels: tuple[str, ...]) -> tuple[int, int, int, int]:
    """Of one row: entities that are right, that were said, that are wanted; and right tags."""
    from seqeval.metrics.sequence_labeling import get_entities

    standard = standard_tags(labels)
    wanted, said = (set(get_entities([standard[tag] for tag in tags])) for tags in (truth, guess))
    return len(wanted & said), len(said), len(wanted), sum(a == b for a, b in zip(truth, guess, strict=True))


def check_tags(rows: Rows, labels: Sequence[str]) -> tuple[Rows, tuple[str, ...]]:
    """Rows with the data's tags in the model's spelling; raises InputError when that cannot be or says nothing."""
    _check_labels(labels)
    if rows.labels is None:
        raise InputError(
            f"{rows.source} has no tags (columns: {', '.join(rows.column_names)})",
            expected="a column with a tag for each word, such as ner_tags, or one with spans",
            remedy="name it with --label-column",
        )
    for number, (text, tags) in enumerate(zip(rows.texts, rows.labels, strict=True), start=1):
        if len(text.split()) != len(tags):
            raise InputError(
                f"row {number} of {rows.source} has {len(text.split())} words and {len(tags)} tags: {text[:60]!r}",
                expected="a tag for each word",
                remedy="correct the row; words are what white space separates",
            )
    found = [str(tag) for tags in rows.labels for tag in tags]
    mapped = iter(_mapped(found, labels, source=rows.source))
    checked = tuple(tuple(islice(mapped, len(tags))) for tags in rows.labels)
    if all(tag == OUTSIDE for tags in checked for tag in tags):
        raise InputError(
            f"every word of the {len(rows)} rows of {rows.source} is outside all entities ({OUTSIDE})",
            expected="rows with entities",
            remedy="give a sample of the real mix, or name the right column with --label-column",
        )
    warnings = few_rows_warning(len(rows))
    if OUTSIDE not in found and all(tag[:1].isdigit() for tag in found):
        order = ", ".join(f"{number} is {name}" for number, name in enumerate(labels[:3]))
        warnings = (*warnings, f"the tags are numbers, read in the order of the model's labels: {order}, ...")
    return replace(rows, labels=checked), warnings


def _check_labels(labels: Sequence[str]) -> None:
    if OUTSIDE not in labels:
        raise InputError(
            f"the model's labels ({', '.join(labels[:6])}) lack {OUTSIDE!r}",
            expected=f"a model that finds entities: {OUTSIDE} for words outside them, and a label for each kind",
            remedy="write the names into id2label of its config.json; parts of speech and the like are not scored here",
        )


def _mapped(found: Sequence[str], labels: Sequence[str], *, source: str) -> list[str]:
    """As :func:`map_labels`; where the tags are written by other rules than the model's, the error says so."""
    try:
        return map_labels(found, labels, source=source)
    except InputError as error:
        ours = {_prefix(label) for label in labels if label != OUTSIDE}
        foreign = sorted({t for t in found if t != OUTSIDE and not t.isdigit() and _prefix(t) not in ours})
        if not foreign:
            raise
        said = ", ".join(sorted({_prefix(tag) or "no prefix" for tag in foreign}))
        raise InputError(
            f"{source} has tags of another scheme than the model's: {said} (such as {', '.join(foreign[:3])})",
            expected=f"{', '.join(sorted(prefix or 'no prefix' for prefix in ours))}: {', '.join(labels[:5])}",
            remedy="write the tags by the model's scheme, or name another column with --label-column",
        ) from error


def _prefix(tag: str) -> str:
    return tag[:2] if tag[:2] in _LETTERS else ""
