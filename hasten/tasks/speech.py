"""Recordings to what Whisper hears: the same code offline and online.

Takes a checkpoint's feature settings, its tokenizer and a recording, gives log-mel features. WAV, FLAC and Ogg are read
by soundfile; other rates than the model's are resampled by scipy, channels averaged. Needs neither torch nor
transformers.

Legend: S samples, M mel bands, F frames.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from math import gcd
from os.path import expanduser, isfile
from pathlib import Path
from typing import Any

import numpy as np

from hasten.records import InputError, MissingDependency
from hasten.tasks.examples import Example
from hasten.tasks.log_mel import log_mel_of
from hasten.tasks.task import Array
from hasten.tasks.tokenize import Tokenizer

SUFFIXES = (".wav", ".flac", ".ogg")
_EXTRA = "generation"
_RATES = range(1_000, 768_001)
# Read beyond what is heard, so that one knows that there is more.
_MORE_S = 1.0


class SpeechProcessor:
    """One example a recording: ``input_features`` float32 [M, F] of its first 30 seconds."""

    def __init__(self, settings: Mapping[str, Any], tokenizer: Tokenizer) -> None:
        kind = settings.get("feature_extractor_type")
        if kind != "WhisperFeatureExtractor":
            raise InputError(
                f"the recordings of this checkpoint go through {kind}", expected="WhisperFeatureExtractor",
                remedy="give a Whisper checkpoint",
            )  # fmt: skip
        self._features = log_mel_of(settings)
        self._tokenizer = tokenizer
        self.max_length = 1

    def hear(self, recording: object, *, name: str = "the recording") -> Example:
        """``recording``: an encoded file's bytes, or a path. Raises InputError."""
        heard_s = self._features.samples / self._features.rate
        samples, rate = opened(recording, name=name, seconds=heard_s + _MORE_S)
        samples = _at_rate(samples.mean(axis=1), rate, self._features.rate)
        made = {"input_features": self._features(samples)}
        return Example(made, truncated=len(samples) > self._features.samples)

    def blank(self) -> Example:
        """Silence, in the shape that all have."""
        shape = (self._features.mels, self._features.frames)
        return Example({"input_features": np.zeros(shape, dtype=np.float32)})

    @property
    def writes(self) -> bool:
        """Does it cut texts as the model would write them?"""
        return self._tokenizer.writes

    def ids(self, text: str) -> list[int]:
        """The ids of a text as Whisper writes it, behind a space and without special ones."""
        return self._tokenizer.ids(f" {text.strip()}")

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return self._tokenizer.count(text)

    def text(self, ids: Sequence[int]) -> str:
        """What these tokens say, special ones left out."""
        return self._tokenizer.text(ids)


def opened(recording: object, *, name: str, seconds: float) -> tuple[Array, int]:
    """Samples float32 [S, channels] of the first ``seconds``, and their rate: hours of silence are a small file.

    Raises InputError for what cannot be read, is empty or no file, and for a rate that no recording has.
    """
    try:
        import soundfile
    except ImportError as error:
        raise MissingDependency("soundfile", extra=_EXTRA) from error
    try:
        with soundfile.SoundFile(io.BytesIO(content_of(recording, name=name))) as stream:
            rate = int(stream.samplerate)
            _check_rate(rate, name=name)
            samples = stream.read(math.ceil(seconds * rate), dtype="float32", always_2d=True)
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
    return samples, rate


def _check_rate(rate: int, *, name: str) -> None:
    """A header may say anything, and what it says decides how much memory resampling takes."""
    if rate not in _RATES:
        raise InputError(
            f"{name} has {rate:,} samples a second", expected=f"{_RATES.start:,} to {_RATES.stop - 1:,}",
            remedy="its header is wrong: convert it again, or drop it",
        )  # fmt: skip


def content_of(recording: object, *, name: str) -> bytes:
    """The encoded file's bytes. Raises InputError."""
    if isinstance(recording, (bytes, bytearray)):
        return bytes(recording)
    if isinstance(recording, (str, Path)):
        path = expanduser(recording)
        if isfile(path):  # never an error: a name may be too long, or hold a zero byte
            return Path(path).read_bytes()
        raise InputError(f"{name}: no such file: {str(path)[:200]}", expected="a recording", remedy="check the path")
    raise InputError(
        f"{name} is a {type(recording).__name__}", expected="a file's bytes, or a path", remedy="convert it"
    )


def _at_rate(samples: Array, rate: int, wanted: int) -> Array:
    """[S] at the model's rate."""
    if rate == wanted:
        return samples
    try:
        from scipy.signal import resample_poly
    except ImportError as error:
        raise MissingDependency("scipy", extra=_EXTRA) from error

    common = gcd(rate, wanted)
    return np.asarray(resample_poly(samples, wanted // common, rate // common), dtype=np.float32)
