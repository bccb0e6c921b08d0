"""What a checkpoint that writes text says of where an answer begins and ends.

Takes a loaded model, gives token ids. Read from ``generation_config.json`` first, as transformers does, then from
``config.json``. Needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_LANGUAGE = "en"


@dataclass(frozen=True, slots=True)
class Writing:
    """``ends`` are the tokens after which an answer is over, ``start`` an encoder-decoder's first ids.

    ``longest``: how many tokens the decoder has positions for, those of a prompt included; ``None`` where they have no
    end.
    """

    ends: tuple[int, ...] = ()
    start: tuple[int, ...] = ()
    longest: int | None = None
    encoder: bool = False


def writing_of(model: Any) -> Writing:
    """The facts of a model with a text head."""
    encoder = bool(getattr(model.config, "is_encoder_decoder", False))
    # A decoder beside an encoder counts its own positions; T5's are relative and have no end.
    names = ("max_target_positions", "max_position_embeddings") if encoder else ("max_position_embeddings",)
    limits = [int(value) for name in names if (value := getattr(model.config, name, None))]
    return Writing(
        ends=_several(_said(model, "eos_token_id")), start=start_of(model) if encoder else (),
        longest=next(iter(limits), None), encoder=encoder,
    )  # fmt: skip


def start_of(model: Any) -> tuple[int, ...]:
    """The ids that an encoder-decoder's decoder is given: its first one, and those that it must write first.

    Whisper's say the language and that it transcribes: the language of ``generation_config.json``, else English.
    """
    first = _several(_said(model, "decoder_start_token_id"))
    settings = getattr(model, "generation_config", None)
    languages = getattr(settings, "lang_to_id", None)
    stamps = getattr(settings, "no_timestamps_token_id", None)
    if languages is not None or stamps is not None:
        told = _told(languages or {}, getattr(settings, "task_to_id", None) or {}, settings)
        return (*first, *told, *_several(stamps))
    forced = _several(_said(model, "forced_bos_token_id"))
    return (*first, *forced)


def _told(languages: dict[str, int], purposes: dict[str, int], settings: Any) -> tuple[int, ...]:
    """Language and purpose, for a model of several."""
    wanted = str(getattr(settings, "language", None) or _LANGUAGE)
    known = [f"<|{wanted.strip('<|>')}|>", f"<|{_LANGUAGE}|>"]
    language = next((languages[name] for name in known if name in languages), None)
    return (*_several(language), *_several(purposes.get("transcribe") if language is not None else None))


def _said(model: Any, name: str) -> Any:
    found = getattr(getattr(model, "generation_config", None), name, None)
    return getattr(model.config, name, None) if found is None else found


def _several(value: Any) -> tuple[int, ...]:
    """Configs give one id, a list of them, or none."""
    if value is None:
        return ()
    return tuple(int(i) for i in value) if isinstance(value, (list, tuple)) else (int(value),)
