"""The models that a student learns from: the original, or others that speak the same language.

Takes folders named in a recipe, gives wrappers. A teacher with another tokenizer or other labels is refused: its
answers would belong to other inputs or other classes. One of another family is welcome: its outputs need nothing but
the same tokens, its inner states an adapter of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hasten.models import adapter_for
from hasten.models.adapter import Adapter
from hasten.models.load import input_names, load_checkpoint, positions_of
from hasten.passes.calibration import Batch, Calibration, as_tensors, length_of
from hasten.records import ModelRef, Rejected
from hasten.tasks import get_task
from hasten.tasks.generation_wrappers import PairWrapper

# What tokenizers of one vocabulary may disagree on: case, accents, widths, spaces, marks, digits, unknown letters.
_SAMPLES = (
    "The quick brown fox jumps over the lazy dog.", "the QUICK Brown FOX", "Crème brûlée, naïve façade; Ærøskøbing",
    "  two  spaces,\ttabs\nand lines ", "3.14, 1,000,000 and 2024-01-31", "don't re-enter (or) e-mail a_b@c.org!?",
    "ＦＵＬＬ ｗｉｄｔｈ ﬁgures ½ ² Ⅳ", "日本語 中文 한국어 русский Ελληνικά العربية", "😀 \u200b\u00ad\ufeff",
    "unbelievability antidisestablishmentarianism",
)  # fmt: skip
_WORDS = 500  # of the vocabulary, as a text, in three spellings


def teachers_for(sources: Sequence[str], given: Calibration) -> list[Any]:
    """Wrappers in eval mode, without gradients; no sources: the original alone. Raises Rejected for a misfit."""
    if not sources:
        return [_still(given.original)]
    return [_still(_loaded(source, given)) for source in sources]


def seen_by(model: Any, batch: Batch) -> Batch:
    """What of a batch the wrapper ``model`` takes: not every family has token types."""
    taken = (*input_names(model.hf), *model.also)
    return {name: array for name, array in batch.items() if name in taken}


def adapter_of_teacher(teacher: Any, *, what: str) -> Adapter:
    """The adapter of the teacher's own family. Raises Rejected, saying how to do without."""
    family = teacher.hf.config.model_type
    found = adapter_for(family)
    if found is None:
        raise Rejected(
            "distill", f"the {what} of a teacher of the family {family} cannot be looked at, for which there is no "
            "adapter; with hidden=0 and relations=0 its outputs alone are learnt from",
        )  # fmt: skip
    return found


def same_language(one: str, other: str) -> bool:
    """Do two ``tokenizer.json`` make the same tokens of the same text? Where they cut it, and what they pad to, is not
    asked."""
    if one == other or not one or not other:
        return one == other
    from tokenizers import Tokenizer

    both = [Tokenizer.from_str(text) for text in (one, other)]
    for tokenizer in both:
        tokenizer.no_truncation()
        tokenizer.no_padding()
    first, second = both
    vocabulary = first.get_vocab()
    if vocabulary != second.get_vocab():
        return False
    words = " ".join(sorted(vocabulary)[:: 1 + len(vocabulary) // _WORDS])
    samples = (*_SAMPLES, words, words.upper(), words.title())
    return all(first.encode(text).ids == second.encode(text).ids for text in samples) and (
        first.encode(*_SAMPLES[:2]).ids == second.encode(*_SAMPLES[:2]).ids
    )


def _loaded(source: str, given: Calibration) -> Any:
    if given.original is None:
        raise Rejected("distill", "other teachers are compared with the original model, which is not given")
    task = given.original.task
    found = load_checkpoint(ModelRef(source), task=get_task(task))
    if given.tokenizer_json is not None and not same_language(found.tokenizer_json, given.tokenizer_json):
        raise Rejected("distill", f"the teacher {source} has another tokenizer than the student")
    own = given.original.hf.config.id2label
    if get_task(task).labelled and found.config.id2label != own:
        raise Rejected(
            "distill", f"the teacher {source} has other labels ({len(found.labels)} of them) than the student"
        )
    teacher = _wrapped_alike(found, given.original).eval()
    _check_sizes(teacher, source, given)
    return teacher


def _wrapped_alike(checkpoint: Any, original: Any) -> Any:
    if isinstance(original, PairWrapper):
        return PairWrapper(checkpoint.model, start=original.start)
    return get_task(original.task).wrap(checkpoint)


@torch.inference_mode()
def _check_sizes(teacher: Any, source: str, given: Calibration) -> None:
    """Raise Rejected when the teacher cannot take the rows, or says something of another shape than the original."""
    rows = [*given.rows, *given.extra]
    longest, most = max(map(length_of, rows)), positions_of(teacher.hf)
    if longest > most:
        raise Rejected("distill", f"the teacher {source} has {most} positions, and there are rows of {longest} tokens")
    row = as_tensors(rows[0])
    pixels, side = row.get("pixel_values"), getattr(teacher.hf.config, "image_size", None)
    if pixels is not None and isinstance(side, int) and tuple(pixels.shape[2:]) != (side, side):
        height, width = pixels.shape[2:]
        raise Rejected(
            "distill", f"the teacher {source} takes images of {side} x {side}, the student of {height} x {width}"
        )
    shape, own = (tuple(model(**seen_by(model, row)).shape[1:]) for model in (teacher, given.original))
    if shape != own:
        raise Rejected(
            "distill", f"the teacher {source} says {_numbers(shape)} a row, and the original {_numbers(own)}"
        )


def _numbers(shape: Sequence[int]) -> str:
    return f"{' x '.join(map(str, shape))} numbers"


def _still(model: Any) -> Any:
    return model.eval().requires_grad_(False)
