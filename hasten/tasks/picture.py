"""A picture from whatever a user has: an encoded file's bytes, its path, a Pillow image or an array. Needs Pillow.

Nothing here trusts its input: sizes are looked at before pixels are decoded, and every way in which Pillow fails is an
InputError that names the picture.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.records import InputError, MissingDependency

if TYPE_CHECKING:
    from PIL import Image

# The forms whose suffix makes a file in a folder a picture.
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")

# What is decoded, whatever a file calls itself. Pillow would also give PostScript to Ghostscript, which runs programs.
_FORMS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO", "TGA")


def pillow() -> Any:
    """``PIL.Image``; raises MissingDependency."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependency("Pillow", extra="images") from error
    return Image


def open_picture(image: object, *, name: str) -> Image.Image:
    """Decoded, upright (as its camera meant it) and with 8 bits a channel, in whatever mode it has.

    Raises InputError for what is no picture, is broken, truncated or empty, has more pixels than Pillow allows, or
    more than 8 bits a channel: which of them matter only its owner knows.
    """
    found = as_opened(image, name=name)
    try:
        from PIL import ImageOps

        found.load()
        upright: Image.Image = ImageOps.exif_transpose(found)
    except Exception as error:  # decoders raise whatever they like
        raise InputError(
            f"{name} cannot be decoded ({str(error)[:120]})",
            expected="a whole image file",
            remedy="copy it again, or drop the row",
        ) from error
    if upright.mode[0] in "IF":
        raise InputError(
            f"{name} has pixels of mode {upright.mode}, more than 8 bits a channel",
            expected="8 bits a channel",
            remedy="scale it to 8 bits the way the training data were",
        )
    return upright


def as_opened(image: object, *, name: str) -> Image.Image:
    """A Pillow image with a sound header and a size that is allowed; its pixels may not be read yet."""
    library = pillow()
    if isinstance(image, np.ndarray):
        found = _of_array(image, name=name)
    elif isinstance(image, library.Image):
        found = image
    else:
        content = read_file(Path(image), name=name) if isinstance(image, (str, Path)) else image
        if not isinstance(content, (bytes, bytearray, memoryview)):
            raise InputError(
                f"{name} is a {type(image).__name__}",
                expected="an image file's bytes, its path, a Pillow image or a uint8 array",
                remedy="give one of these",
            )
        found = _opened(bytes(content), name=name)
    _check_size(found, name=name, limit=library.MAX_IMAGE_PIXELS)
    return found


def as_png(image: np.ndarray[Any, Any] | Image.Image, *, name: str) -> bytes:
    """An array (uint8 [H, W] or [H, W, 3]) or Pillow image as a file's bytes, without loss."""
    found = image if not isinstance(image, np.ndarray) else _of_array(image, name=name)
    stream = io.BytesIO()
    try:
        found.save(stream, "PNG", compress_level=1)  # read more often than kept
    except (OSError, ValueError) as error:
        raise InputError(
            f"{name} cannot be written as PNG ({error})", expected="grey or colour", remedy="convert it"
        ) from error
    return stream.getvalue()


def read_file(path: Path, *, name: str) -> bytes:
    """The file's bytes; an InputError where there is no such file."""
    try:
        return path.expanduser().read_bytes()
    except (OSError, ValueError, RuntimeError) as error:  # no such file, a zero byte in its name, no such home
        why = getattr(error, "strerror", None) or error
        raise InputError(
            f"{name}: {path} cannot be read ({why})",
            expected="an image file",
            remedy="correct the path; in a table, paths count from the table's own folder",
        ) from error


def _opened(content: bytes, *, name: str) -> Image.Image:
    library = pillow()
    library.init()
    forms = [form for form in _FORMS if form in library.OPEN]
    try:
        found: Image.Image = library.open(io.BytesIO(content), formats=forms)
    except (library.DecompressionBombError, library.DecompressionBombWarning) as error:
        raise _too_large(name, str(error)) from error
    except Exception as error:  # an unknown form, or whatever a form's reader raises
        start = f"{len(content):,} bytes that start with {content[:8]!r}" if content else "no bytes"
        raise InputError(
            f"{name} is no image that Pillow can read: {start}",
            expected="a whole file in a form such as PNG, JPEG or WebP",
            remedy="convert it, copy it again, or drop the row",
        ) from error
    return found


def _check_size(image: Image.Image, *, name: str, limit: int | None) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise InputError(f"{name} has {width} x {height} pixels", expected="at least one pixel", remedy="drop the row")
    if limit is not None and width * height > limit:
        raise _too_large(name, f"{width} x {height} pixels, and {limit:,} are allowed")


def _too_large(name: str, why: str) -> InputError:
    return InputError(
        f"{name} is too large: {why}",
        expected="an image, not something that fills the memory",
        remedy="scale it down first",
    )


def _of_array(image: np.ndarray[Any, Any], *, name: str) -> Image.Image:
    if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3, 4))):
        raise InputError(
            f"{name} is an array of {image.dtype} {list(image.shape)}",
            expected="uint8 [height, width] or [height, width, channels]",
            remedy="convert it, or give the file",
        )
    if 0 in image.shape:
        raise InputError(f"{name} has {image.size} pixels", expected="at least one pixel", remedy="drop the row")
    flat = image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image
    found: Image.Image = pillow().fromarray(np.ascontiguousarray(flat))
    return found
