"""Recordings to what Whisper hears: the same code offline and online.

Takes a checkpoint's feature settings, its tokenizer and a recording, gives log-mel features through transformers' own
extractor. WAV, FLAC and Ogg are read by soundfile; other rates than the model's are resampled, channels averaged.

Legend: S samples, M mel bands, F frames.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np

from hasten.records import InputError, MissingDependency
from hasten.tasks.examples import Example
from hasten.tasks.task import Array
from hasten.tasks.tokenize import Tokenizer

SUFFIXES = (".wav", ".flac", ".ogg")
_EXTRA = "generation"


class SpeechProcessor:
    """One example a recording: ``input_features`` float32 [M, F] of its first 30 seconds."""

    def __init__(self, settings: Mapping[str, Any], tokenizer: Tokenizer) -> None:
        kind = settings.get("feature_extractor_type")
        if kind != "WhisperFeatureExtractor":
            raise InputError(
                f"the recordings of this checkpoint go through {kind}", expected="WhisperFeatureExtractor",
                remedy="give a Whisper checkpoint",
            )  # fmt: skip
        try:
            from transformers import WhisperFeatureExtractor
        except ImportError as error:
            raise MissingDependency("transformers", extra=_EXTRA) from error
        self._extract: Any = WhisperFeatureExtractor.from_dict(dict(settings))
        self._tokenizer = tokenizer
        self.max_length = 1

    def hear(self, recording: object, *, name: str = "the recording") -> Example:
        """``recording``: an encoded file's bytes, or a path. Raises InputError."""
        samples, rate = opened(recording, name=name)
        samples = _at_rate(samples.mean(axis=1), rate, int(self._extract.sampling_rate))
        made = self._extract(samples, sampling_rate=self._extract.sampling_rate, return_tensors="np")
        features = np.asarray(made["input_features"][0], dtype=np.float32)
        return Example({"input_features": features}, truncated=len(samples) > int(self._extract.n_samples))

    def blank(self) -> Example:
        """Silence, in the shape that all have."""
        return Example({"input_features": np.zeros(self._shape, dtype=np.float32)})

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return self._tokenizer.count(text)

    def text(self, ids: Sequence[int]) -> str:
        """What these tokens say, special ones left out."""
        return self._tokenizer.text(ids)

    @property
    def _shape(self) -> tuple[int, int]:
        return int(self._extract.feature_size), int(self._extract.nb_max_frames)


def opened(recording: object, *, name: str) -> tuple[Array, int]:
    """Samples float32 [S, channels] and their rate. Raises InputError for what cannot be read, is empty or no file."""
    try:
        import soundfile
    except ImportError as error:
        raise MissingDependency("soundfile", extra=_EXTRA) from error
    try:
        samples, rate = soundfile.read(io.BytesIO(content_of(recording, name=name)), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise InputError(
            f"{name} cannot be read as a recording ({error})", expected=f"a file such as {', '.join(SUFFIXES)}",
            remedy="convert it, for example: ffmpeg -i IN -ar 16000 -ac 1 OUT.wav",
        ) from error  # fmt: skip
    if not len(samples) or not np.isfinite(samples).all():
        raise InputError(
            f"{name} has {len(samples)} samples" + (", not all finite" if len(samples) else ""),
            expected="a recording", remedy="drop it",
        )  # fmt: skip
    return samples, int(rate)


def content_of(recording: object, *, name: str) -> bytes:
    """The encoded file's bytes. Raises InputError."""
    if isinstance(recording, (bytes, bytearray)):
        return bytes(recording)
    if isinstance(recording, (str, Path)):
        path = Path(recording).expanduser()
        if path.is_file():
            return path.read_bytes()
        raise InputError(f"no such file: {path}", expected="a recording", remedy="check the path")
    raise InputError(
        f"{name} is a {type(recording).__name__}", expected="a file's bytes, or a path", remedy="convert it"
    )


def _at_rate(samples: Array, rate: int, wanted: int) -> Array:
    """[S] at the model's rate."""
    if rate == wanted:
        return samples
    from scipy.signal import resample_poly

    common = gcd(rate, wanted)
    return np.asarray(resample_poly(samples, wanted // common, rate // common), dtype=np.float32)
