"""Arrays in the IDX form, as MNIST and its kin are given: ``*-images-idx3-ubyte`` with ``*-labels-idx1-ubyte`` beside.

Takes the file of images (gzipped or not), gives arrays and class numbers. The form: two zero bytes, the type (8 is
uint8), the number of dimensions, each dimension as four bytes (highest first), then the values.

Legend: N images, H height, W width.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from pathlib import Path

import numpy as np

from hasten.records import InputError
from hasten.tasks.task import Array

_UINT8 = 8
_MOST_BYTES = 2**33
_IMAGES = re.compile(r"images([-.])idx3-ubyte(\.gz)?$")


def is_idx(path: Path) -> bool:
    """Is this the name of a file of images?"""
    return _IMAGES.search(path.name) is not None


def idx_files(folder: Path) -> list[Path]:
    """The files of images in a folder."""
    return sorted(path for path in folder.iterdir() if is_idx(path))


def read_idx(path: Path, *, labels_wanted: bool = True) -> tuple[Array, Array | None]:
    """Images uint8 [N, H, W] and class numbers [N]. Raises InputError for files that are broken or do not belong
    together, or when labels are wanted and not there."""
    images = _array(path, dimensions=3)
    if not labels_wanted:
        return images, None
    bare = _IMAGES.sub(r"labels\1idx1-ubyte", path.name)
    beside = [path.with_name(name) for name in (bare, f"{bare}.gz")]
    found = next((candidate for candidate in beside if candidate.is_file()), None)
    if found is None:
        raise InputError(
            f"{path} has no labels beside it", expected=f"{beside[0].name}, gzipped or not", remedy="put it there"
        )
    labels = _array(found, dimensions=1)
    if len(labels) != len(images):
        raise InputError(
            f"{len(images)} images in {path.name} and {len(labels)} labels in {found.name}",
            expected="one label an image",
            remedy="give files of the same set",
        )
    return images, labels


def _array(path: Path, *, dimensions: int) -> Array:
    content = _content(path)
    if content[:4] != bytes([0, 0, _UINT8, dimensions]) or len(content) < 4 + 4 * dimensions:
        raise _broken(path, f"it starts with {content[:4].hex(' ') or 'nothing'}", f"00 00 08 {dimensions:02x}")
    start = 4 + 4 * dimensions
    shape = np.frombuffer(content[4:start], dtype=">u4").tolist()
    if len(content) - start != math.prod(shape) or 0 in shape:
        raise _broken(path, f"it holds {len(content) - start:,} bytes for {shape}", f"{math.prod(shape):,} bytes")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def _content(path: Path) -> bytes:
    try:
        if path.suffix != ".gz":
            return path.read_bytes()
        with gzip.open(path) as stream:
            content = stream.read(_MOST_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise _broken(path, f"it cannot be read ({error})", "a whole file") from error
    return content


def _broken(path: Path, what: str, expected: str) -> InputError:
    return InputError(f"{path}: {what}", expected=f"an IDX file: {expected}", remedy="download it again")
