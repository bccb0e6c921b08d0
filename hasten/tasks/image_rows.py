"""Read images and their classes, in the forms that are usual for them.

Takes a folder with a sub-folder a class, a folder with a metadata table, a table with paths or with the images
themselves (Parquet as Hugging Face writes it), or IDX files; gives :class:`Rows` whose texts are the images' names.
Images stay encoded as they are: only their headers are looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hasten.records import Columns, InputError
from hasten.tasks.columns import LABEL_NAMES, one_column
from hasten.tasks.file_rows import File, Forms, Found, contents_of, read_files, rows_of
from hasten.tasks.idx import idx_files, is_idx, read_idx
from hasten.tasks.picture import SUFFIXES, as_opened, as_png, read_file
from hasten.tasks.rows import Rows, label_texts
from hasten.tasks.tables import Table, read_table

_IMAGE = ("image", "img", "file_name", "filename", "file", "image_path", "path", "filepath", "picture")
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"}
_LITTER = {"readme.md", "readme.txt", "readme", "license", "license.txt", "thumbs.db", "desktop.ini"}
_FORMS = "a folder with a sub-folder for each class, a table with an image column (CSV, JSONL, Parquet), or IDX files"


def read_image_rows(source: str | Path, *, columns: Columns, labels_wanted: bool = True) -> Rows:
    """Rows of any of the forms, in a fixed order; without ``labels_wanted`` no labels are looked for.

    Raises InputError for a form that is none of these, files that are missing or no images, and classes without any;
    MissingDependency without Pillow.
    """
    forms = Forms(
        what="image", suffixes=SUFFIXES, expected=_FORMS,
        folder=lambda path: _folder(path, columns, labels_wanted),
        table=lambda given: _table(given, columns, labels_wanted),
        special=lambda path: _idx(path, labels_wanted) if is_idx(path) else None,
    )  # fmt: skip
    found = read_files(source, forms, columns=columns)
    return rows_of(found, source=source, images=contents_of(found))


# --------------------------------------------------------------------------- folders


def _folder(folder: Path, columns: Columns, labels_wanted: bool) -> Found:
    tables = [folder / name for name in _METADATA if (folder / name).is_file()]
    sets = idx_files(folder)
    if len(tables) + len(sets) > 1:
        both = ", ".join(path.name for path in (*tables, *sets))
        raise InputError(f"{folder} holds {both}", expected="one set of images", remedy="give one of these files")
    if tables:
        return _table(tables[0], columns, labels_wanted)
    if sets:
        return _idx(sets[0], labels_wanted)
    loose = list(_images(folder, deep=False))
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    found: list[tuple[Path, str | None]]
    if labels_wanted:
        _check_classes(folder, classes, loose)
        found = [(path, kind.name) for kind in classes for path in _of_class(kind)]
    else:
        found = [(path, None) for path in _images(folder, deep=True)]
    return [_checked(path.relative_to(folder).as_posix(), path, label) for path, label in found], ("image", "label")


def _check_classes(folder: Path, classes: Sequence[Path], loose: Sequence[Path]) -> None:
    if not classes or loose:
        what = f"{len(loose)} images that are in no class" if loose else "no sub-folders"
        raise InputError(
            f"{folder} holds {what}" + (f", such as {loose[0].name}" if loose else ""),
            expected="a sub-folder for each class, or a metadata.csv with file_name and label",
            remedy="sort the images into classes, or write the table",
        )
    if all(path.name.casefold() in _SPLITS for path in classes):
        names = ", ".join(path.name for path in classes)
        raise InputError(
            f"{folder} holds the splits {names}, which are no classes",
            expected="a folder with a sub-folder for each class",
            remedy=f"give one of them, such as {classes[-1]}, or all with --calibration-data and the like",
        )


def _of_class(folder: Path) -> list[Path]:
    found = list(_images(folder, deep=True))
    if not found:
        raise InputError(
            f"the class folder {folder} holds no images",
            expected=f"files that end in {', '.join(SUFFIXES)}",
            remedy="fill it, or remove it",
        )
    return found


def _images(folder: Path, *, deep: bool) -> Iterator[Path]:
    """The folder's images in order. Any other file in a class could be a row that is lost: it is an error."""
    for path in sorted(folder.rglob("*") if deep else folder.iterdir()):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or not path.is_file() or path.name.casefold() in _LITTER:
            continue
        if path.suffix.lower() in SUFFIXES:
            yield path
        elif deep:
            raise InputError(
                f"{path} is no image that is read here",
                expected=f"files that end in {', '.join(SUFFIXES)}",
                remedy="convert it, or move it elsewhere",
            )


def _checked(name: str, path: Path, label: str | None) -> File:
    content = read_file(path, name=name)
    as_opened(content, name=name)
    return File(name, content, label)


# --------------------------------------------------------------------------- IDX


def _idx(path: Path, labels_wanted: bool) -> Found:
    images, labels = read_idx(path, labels_wanted=labels_wanted)
    named = [(number, f"image {number}", image) for number, image in enumerate(images)]
    return [
        File(name, as_png(image, name=name), None if labels is None else str(labels[number]))
        for number, name, image in named
    ], ("image", "label")


# --------------------------------------------------------------------------- tables


def _table(source: str | Path, columns: Columns, labels_wanted: bool) -> Found:
    table = read_table(source)
    if not table.rows:
        raise InputError(f"{source} holds no rows", expected="at least one row", remedy="give another file")
    flag = "--text-column"
    image = one_column(table.names, columns.text, usual=_IMAGE, flag=flag, source=str(source))
    if image is None:
        raise InputError(
            f"{source} has the columns {', '.join(table.names)}; none has a usual name for images",
            expected=f"a column of images or of their paths, such as {', '.join(_IMAGE[:4])}",
            remedy=f"name it with {flag}; rows of text are for --task text-classification",
        )
    given = columns.label and one_column(
        table.names, columns.label, usual=(), flag="--label-column", source=str(source)
    )
    rest = [name for name in table.names if name != image]
    if given is None and labels_wanted:
        given = one_column(rest, None, usual=LABEL_NAMES, flag="--label-column", source=str(source))
    labels: Sequence[str | None] = (
        label_texts(table, given, source=source) if given is not None else [None] * len(table.rows)
    )
    return list(_pictures(table, image, labels, source=source)), table.names


def _pictures(table: Table, column: str, labels: Sequence[str | None], *, source: str | Path) -> Iterator[File]:
    """Paths count from the table's own folder."""
    folder = Path(source).expanduser().parent
    for number, (row, label) in enumerate(zip(table.rows, labels, strict=True), start=1):
        where = f"row {number} of {source}"
        value = row.get(column)
        path = value.get("path") if isinstance(value, Mapping) else value if isinstance(value, str) else None
        name = f"{where}, {path}" if path else where
        content = _content(value, folder, where=name)
        as_opened(content, name=name)
        yield File(path or f"row {number}", content, label)


def _content(value: Any, folder: Path, *, where: str) -> bytes:
    """Bytes, a path, ``{"bytes", "path"}`` as Hugging Face writes it, or a Pillow image as ``datasets`` gives it."""
    if isinstance(value, Mapping):
        inner = value.get("bytes")
        value = inner if inner is not None else value.get("path")
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    if isinstance(value, str) and value.strip():
        if "://" in value:
            raise InputError(
                f"{where} is an address", expected="a path, or the image itself", remedy="download it first"
            )
        return read_file(folder / value, name=where)
    if hasattr(value, "save") and hasattr(value, "getbands"):
        return as_png(value, name=where)
    raise InputError(
        f"{where} holds {type(value).__name__ if value is not None and value != '' else 'nothing'} for an image",
        expected="an encoded image, or its path",
        remedy="fill or drop such rows, or name another column with --text-column",
    )
