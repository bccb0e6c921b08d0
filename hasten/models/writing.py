"""What a checkpoint that writes text says of where an answer begins and ends, and of what it never writes.

Takes a loaded model, gives token ids. Read from ``generation_config.json`` first, as transformers does, then from
``config.json``. Needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hasten.models.spoken import forced_ids, is_of_speech, notes_of_speech, speech_start
from hasten.records import InputError

# Settings that answers are written without: name, and what it is where it changes nothing.
_UNHEEDED = (
    ("num_beams", 1), ("min_length", 0), ("min_new_tokens", 0), ("no_repeat_ngram_size", 0),
    ("repetition_penalty", 1.0), ("encoder_no_repeat_ngram_size", 0), ("encoder_repetition_penalty", 1.0),
)  # fmt: skip
# Families whose decoders are told the language by their first token.
_MANY_LANGUAGES = ("mbart", "m2m_100", "nllb-moe")


@dataclass(frozen=True, slots=True)
class Writing:
    """``ends`` are the tokens after which an answer is over, ``start`` an encoder-decoder's first ids; ``never`` are
    tokens that it must not write, ``never_first`` such that no answer begins with.

    ``longest``: how many tokens the decoder has positions for, those of a prompt included; ``reads``: an encoder's, of
    a text; ``None`` where they have no end. ``notes``: sentences on what of the settings is not followed.
    """

    ends: tuple[int, ...] = ()
    start: tuple[int, ...] = ()
    longest: int | None = None
    encoder: bool = False
    never: tuple[int, ...] = ()
    never_first: tuple[int, ...] = ()
    reads: int | None = None
    notes: tuple[str, ...] = ()


def writing_of(model: Any) -> Writing:
    """The facts of a model with a text head. Raises InputError for settings that are none."""
    try:
        return _writing_of(model)
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"generation_config.json or config.json holds something else than token ids ({str(error)[:120]})",
            expected="numbers, or lists of numbers, for eos_token_id, suppress_tokens, bad_words_ids and the like",
            remedy="correct the file, or restore the original",
        ) from error


def _writing_of(model: Any) -> Writing:
    encoder = bool(getattr(model.config, "is_encoder_decoder", False))
    # A decoder beside an encoder counts its own positions; T5's are relative and have no end.
    names = ("max_target_positions", "max_position_embeddings") if encoder else ("max_position_embeddings",)
    ends = tuple(i for i in _several(_said(model, "eos_token_id")) if i >= 0)  # -1: none, as older configs say it
    banned = [words for words in _said(model, "bad_words_ids") or () if len(words) == 1]
    never = {int(words[0]) for words in banned} - set(ends) | set(_several(_said(model, "suppress_tokens")))
    return Writing(
        ends=ends, start=start_of(model) if encoder else (), longest=_first_limit(model, names), encoder=encoder,
        never=_ids(never), never_first=_ids(_several(_said(model, "begin_suppress_tokens"))),
        reads=_first_limit(model, ("max_position_embeddings",)) if encoder and not is_of_speech(model) else None,
        notes=_notes(model, encoder=encoder),
    )  # fmt: skip


def start_of(model: Any) -> tuple[int, ...]:
    """The ids that an encoder-decoder's decoder is given: its first one, and those that it must write first.

    Whisper's say the language and what it is to do. Raises InputError for a language that the model does not know.
    """
    first = _several(_said(model, "decoder_start_token_id")) or _several(_said(model, "bos_token_id"))
    if is_of_speech(model):
        return (*first, *speech_start(model, forced=forced_ids(_said(model, "forced_decoder_ids"))))
    return (*first, *_several(_said(model, "forced_bos_token_id")))


def _notes(model: Any, *, encoder: bool) -> tuple[str, ...]:
    """What readers of the verdict should know of the settings."""
    set_so = [f"{n} {v}" for n, usual in _UNHEEDED if (v := _said(model, n)) is not None and v != usual]
    found = []
    if set_so:
        found.append(f"answers are written greedily, without the checkpoint's {', '.join(set_so)}")
    words = sum(len(words) > 1 for words in _said(model, "bad_words_ids") or ())
    if words:
        found.append(f"{words} of the checkpoint's bad_words_ids have several tokens and are not kept from answers")
    kind = getattr(model.config, "model_type", "")
    if encoder and kind in _MANY_LANGUAGES and _said(model, "forced_bos_token_id") is None:
        found.append(
            f"{kind} writes many languages and the checkpoint says no forced_bos_token_id: it may write another "
            "language than your references; set it in generation_config.json"
        )
    return (*found, *(notes_of_speech(model, forced_ids(_said(model, "forced_decoder_ids"))) if encoder else ()))


def _first_limit(model: Any, names: tuple[str, ...]) -> int | None:
    return next((int(value) for name in names if (value := getattr(model.config, name, None))), None)


def _said(model: Any, name: str) -> Any:
    found = getattr(getattr(model, "generation_config", None), name, None)
    return getattr(model.config, name, None) if found is None else found


def _ids(found: Any) -> tuple[int, ...]:
    """In order, each once; numbers that stand for no token (-1) go."""
    return tuple(sorted({i for i in found if i >= 0}))


def _several(value: Any) -> tuple[int, ...]:
    """Configs give one id, a list of them, or none."""
    if value is None:
        return ()
    return tuple(int(i) for i in value) if isinstance(value, (list, tuple)) else (int(value),)
