"""Images to pixel arrays: the same code offline and online.

Takes a checkpoint's image settings and an image, gives float32 pixels, the same as transformers' Pillow processors.
Uses Pillow and numpy alone, so a bundle serves without transformers.

Legend: C channels, H height, W width.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from hasten.records import InputError
from hasten.tasks.examples import Example
from hasten.tasks.image_settings import ImageSettings, Size
from hasten.tasks.picture import open_picture, pillow
from hasten.tasks.task import Array

if TYPE_CHECKING:
    from PIL import Image


class ImageProcessor:
    """One example an image, ``pixel_values`` float32 [C, H, W]; nothing in it is ever cut off for its length."""

    def __init__(self, settings: ImageSettings) -> None:
        pillow()  # what is missing is better said now than at the first request
        self.settings = settings
        self.max_length = 1
        # A pixel has 256 values: what becomes of each is computed once. In float64 and rounded, as transformers does.
        values = (np.arange(256, dtype=np.float64) * settings.scale).astype(np.float32)
        mean, std = (np.array(x, dtype=np.float32)[:, None] for x in (settings.mean, settings.std))
        self._values: Array = (values - mean) / std

    def encode(self, image: object, *, name: str = "the image") -> Example:
        """``image``: an encoded file's bytes, a path, a Pillow image or a uint8 array. Raises InputError."""
        picture = self._in_channels(open_picture(image, name=name))
        pixels = np.asarray(self._resized(picture, name=name))
        pixels = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
        if self.settings.crop is not None:
            pixels = centred(pixels, self.settings.crop)
        values = np.stack([own[channel] for own, channel in zip(self._values, pixels, strict=True)])
        return Example({"pixel_values": values})

    def blank(self) -> Example:
        """An image of zeros, in the shape that all have."""
        return Example({"pixel_values": np.zeros(self.settings.shape, dtype=np.float32)})

    def _in_channels(self, picture: Image.Image) -> Image.Image:
        """Grey or RGB, as the model has them."""
        if len(self.settings.mean) == 1:
            return picture if picture.mode == "L" else picture.convert("L")
        if "A" not in picture.getbands() and "transparency" not in picture.info:
            return picture if picture.mode == "RGB" else picture.convert("RGB")
        seen = picture.convert("RGBA")
        if self.settings.on_white:
            library = pillow()
            seen = library.alpha_composite(library.new("RGBA", seen.size, (255, 255, 255, 255)), seen)
        return seen.convert("RGB")

    def _resized(self, picture: Image.Image, *, name: str) -> Image.Image:
        wanted = self.settings.resize
        if wanted is None:
            return picture
        height, width = wanted if isinstance(wanted, tuple) else shorter_edge(picture.size, wanted)
        limit = pillow().MAX_IMAGE_PIXELS
        if limit is not None and height * width > limit:
            raise InputError(
                f"{name} has {picture.width} x {picture.height} pixels, which would become {width} x {height}",
                expected="an image that is not so much longer than wide",
                remedy="cut it first",
            )
        return picture.resize((width, height), resample=self.settings.resample)


def shorter_edge(size: tuple[int, int], edge: int) -> Size:
    """(H, W) of an image of ``size`` (W, H) whose shorter edge has become ``edge``; the longer is rounded down."""
    width, height = size
    longer = math.floor(edge * max(size) / min(size))
    return (longer, edge) if width <= height else (edge, longer)


def centred(pixels: Array, size: Size) -> Array:
    """[C, H, W] -> [C, *size] around the centre; what is smaller lies on zeros, and an odd pixel more is in front."""
    starts = [(have - want) // 2 for have, want in zip(pixels.shape[1:], size, strict=True)]
    counts = [min(have, want) for have, want in zip(pixels.shape[1:], size, strict=True)]
    (y, x), (h, w) = [max(start, 0) for start in starts], counts
    (top, left) = (max(-start, 0) for start in starts)
    found = np.zeros((len(pixels), *size), dtype=pixels.dtype)
    found[:, top : top + h, left : left + w] = pixels[:, y : y + h, x : x + w]
    return found
