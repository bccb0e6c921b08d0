"""Log-mel features as Whisper was trained with them (Radford et al. 2022), in numpy alone.

Takes a feature extractor's settings and samples, gives features. All is computed in float64 and rounded once, so that
hosts differ in the last bits at most. Mel bands are Slaney's: linear below 1 kHz, logarithmic above, of equal area.

Legend: S samples, M mel bands, F frames, K frequencies of a window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hasten.records import InputError

Array = np.ndarray[Any, Any]
_HIGHEST_HZ = 8000.0
_LEAST = 1e-10
_DEPTH = 8.0  # decades below the loudest that are kept
_KNEE_HZ, _KNEE_MEL = 1000.0, 15.0
_LOG_STEP = np.log(6.4) / 27.0


@dataclass(frozen=True, slots=True)
class LogMel:
    """``bands`` [K, M] weigh the power of each frequency; ``window`` samples are seen at a time, every ``hop`` ones."""

    rate: int
    samples: int
    window: int
    hop: int
    fill: float
    bands: Array

    def __call__(self, samples: Array) -> Array:
        """[S] at ``rate`` -> float32 [M, F] of the first ``samples`` of them, the rest filled up."""
        heard = np.full(self.samples, self.fill, dtype=np.float64)
        kept = samples[: self.samples]
        heard[: len(kept)] = kept
        half = self.window // 2
        around = np.pad(heard, (half, half), mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(around, self.window)[:: self.hop][: self.frames]
        hann = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(self.window) / self.window)
        power = np.abs(np.fft.rfft(frames * hann, axis=-1)) ** 2
        loud = np.log10(np.maximum(power @ self.bands, _LEAST)).T
        return np.asarray((np.maximum(loud, loud.max() - _DEPTH) + 4.0) / 4.0, dtype=np.float32)

    @property
    def frames(self) -> int:
        """F."""
        return self.samples // self.hop

    @property
    def mels(self) -> int:
        """M."""
        return int(self.bands.shape[1])


def log_mel_of(settings: Mapping[str, Any]) -> LogMel:
    """From a checkpoint's settings; what they leave out is as in Whisper's first models. Raises InputError for values
    that make no features, and for noise that would be added."""
    rate, window = _whole(settings, "sampling_rate", 16000), _whole(settings, "n_fft", 400)
    hop, seconds = _whole(settings, "hop_length", 160), _whole(settings, "chunk_length", 30)
    mels = _whole(settings, "feature_size", 80)
    if settings.get("dither"):
        raise InputError(
            f"dither = {settings['dither']}",
            expected="features without noise",
            remedy="set dither to 0 in the settings",
        )
    if window > seconds * rate:
        raise InputError(
            f"n_fft = {window} of {seconds * rate} samples", expected="a shorter window", remedy="restore the settings"
        )
    return LogMel(
        rate=rate, samples=seconds * rate, window=window, hop=hop, fill=float(settings.get("padding_value", 0.0)),
        bands=_bands(rate, window, mels),
    )  # fmt: skip


def _whole(settings: Mapping[str, Any], name: str, usual: int) -> int:
    found = settings.get(name, usual)
    if isinstance(found, bool) or not isinstance(found, int) or not 1 <= found <= 1_000_000:
        raise InputError(f"{name} = {found!r}", expected="a whole number above 0", remedy="restore the settings")
    return found


def _bands(rate: int, window: int, mels: int) -> Array:
    """[K, M]: triangles whose corners are evenly spaced in mel, each of the same area."""
    corners = _hertz(np.linspace(0.0, _mel(_HIGHEST_HZ), mels + 2))
    hertz = np.linspace(0.0, rate // 2, 1 + window // 2)[:, None]
    low, middle, high = corners[:-2], corners[1:-1], corners[2:]
    rising, falling = (hertz - low) / (middle - low), (high - hertz) / (high - middle)
    return np.asarray(np.maximum(0.0, np.minimum(rising, falling)) * 2.0 / (high - low))


def _mel(hertz: float) -> float:
    """Of a frequency above the knee."""
    return float(_KNEE_MEL + np.log(hertz / _KNEE_HZ) / _LOG_STEP)


def _hertz(mel: Array) -> Array:
    return np.where(mel < _KNEE_MEL, mel * 200.0 / 3.0, _KNEE_HZ * np.exp(_LOG_STEP * (mel - _KNEE_MEL)))
