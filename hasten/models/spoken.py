"""What Whisper's decoder is told before it writes: the language, whether to translate, and that no times are wanted.

Takes a loaded model, gives token ids. Read from ``generation_config.json``: ``language`` and ``task`` first, then the
ids that older checkpoints force, then English and transcription. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hasten.records import InputError

_LANGUAGE = "en"
_PURPOSE = "transcribe"


def is_of_speech(model: Any) -> bool:
    """Does it say how to be told a language, as Whisper's checkpoints do, or is it one?"""
    settings = getattr(model, "generation_config", None)
    told = ("lang_to_id", "no_timestamps_token_id")
    kind = getattr(getattr(model, "config", None), "model_type", "")
    return kind == "whisper" or any(getattr(settings, name, None) is not None for name in told)


def forced_ids(value: Any) -> dict[int, int]:
    """``forced_decoder_ids``: the id at each place; a place that is left open is not among them."""
    pairs = value if isinstance(value, (list, tuple)) else ()
    return {int(place): int(found) for place, found in pairs if found is not None}


def speech_start(model: Any, *, forced: Mapping[int, int]) -> tuple[int, ...]:
    """The ids after the first one. Raises InputError for a language or a purpose that the model does not know."""
    settings = getattr(model, "generation_config", None)
    languages: Mapping[str, int] = getattr(settings, "lang_to_id", None) or {}
    purposes: Mapping[str, int] = getattr(settings, "task_to_id", None) or {}
    silent = getattr(settings, "no_timestamps_token_id", None)
    said, purpose = getattr(settings, "language", None), getattr(settings, "task", None)
    if not languages:  # of one language, or so old that all is in the forced ids
        _check_alone(said, purpose, forced)
        told = [forced[place] for place in sorted(forced)]
    else:
        wanted = f"<|{_code(str(said or _LANGUAGE))}|>"
        if wanted not in languages:
            raise _unknown("language", str(said or _LANGUAGE), [name.strip("<|>") for name in languages])
        known = forced.get(1) in languages.values()
        told = [forced[1] if said is None and known else int(languages[wanted])]
        if purpose is not None and purpose not in purposes:
            raise _unknown("task", str(purpose), list(purposes))
        known = forced.get(2) in purposes.values()
        doing = forced[2] if purpose is None and known else purposes.get(purpose or _PURPOSE)
        told += [] if doing is None else [int(doing)]
    return (*told, *([] if silent is None or silent in told else [int(silent)]))


def notes_of_speech(model: Any, forced: Mapping[int, int]) -> tuple[str, ...]:
    """That English is a guess, where it is one."""
    settings = getattr(model, "generation_config", None)
    languages = getattr(settings, "lang_to_id", None) or {}
    if not languages or getattr(settings, "language", None) is not None or forced.get(1) in languages.values():
        return ()
    return (
        "the checkpoint says no language: recordings were taken for English; set language in generation_config.json",
    )


def _check_alone(said: Any, purpose: Any, forced: Mapping[int, int]) -> None:
    """Without tokens for them, neither another language nor another purpose can be asked for."""
    if said is not None and _code(str(said)) != _LANGUAGE and not forced:
        raise _unknown("language", str(said), [_LANGUAGE])
    if purpose not in (None, _PURPOSE) and not forced:
        raise _unknown("task", str(purpose), [_PURPOSE])


def _code(said: str) -> str:
    """Of a name (Hindi), a code (hi) or a token (<|hi|>)."""
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    plain = said.strip().removeprefix("<|").removesuffix("|>").lower()
    return str(TO_LANGUAGE_CODE.get(plain, plain))


def _unknown(what: str, said: str, known: list[str]) -> InputError:
    shown = ", ".join(sorted(known)[:12]) + (", ..." if len(known) > 12 else "")
    return InputError(
        f"generation_config.json asks for the {what} {said!r}", expected=f"one that the model knows: {shown}",
        remedy=f"correct {what} in the checkpoint's generation_config.json",
    )  # fmt: skip
