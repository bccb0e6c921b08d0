"""Small images, and the folder of them that the tests of reading and of the task share."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from hasten.records import Columns
from hasten.tasks import get_task
from hasten.tasks.rows import Rows

TASK = get_task("image-classification")
NAMES = ("cat", "dog")


def png(number: int, *, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), (number * 20 % 256, 5, 7)).save(stream, form)
    return stream.getvalue()


def read(source: Path, *, columns: Columns | None = None, labels_wanted: bool = True) -> Rows:
    return TASK.read(source, columns=columns or Columns(), labels_wanted=labels_wanted)


def class_folders(folder: Path) -> Path:
    for number, (label, name) in enumerate([("cat", "a.png"), ("cat", "deep/b.PNG"), ("dog", "a.jpg")]):
        path = folder / label / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number, form="JPEG" if name.endswith("jpg") else "PNG"))
    (folder / "README.md").write_text("words")
    (folder / "cat" / ".DS_Store").touch()
    (folder / "cat" / "Thumbs.db").touch()
    (folder / ".git").mkdir()
    return folder
