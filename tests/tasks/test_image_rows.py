"""Reading images: every form of data is read alike, and every broken one is named."""

from __future__ import annotations

import gzip
import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_cases import NAMES, TASK, class_folders, png, read
from PIL import Image

from hasten.records import Columns, InputError
from hasten.tasks import get_task
from hasten.tasks.rows import Rows


def loose_images(folder: Path) -> list[tuple[str, str]]:
    (folder / "some").mkdir(parents=True)
    names = [("some/a.png", "cat"), ("some/b.png", "dog"), ("c.png", "cat")]
    for number, (name, _) in enumerate(names):
        (folder / name).write_bytes(png(number))
    return names


# --------------------------------------------------------------------------- forms


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    found = read(class_folders(tmp_path / "data"))
    assert found.texts == ("cat/a.png", "cat/deep/b.PNG", "dog/a.jpg")
    assert found.labels == ("cat", "cat", "dog")
    assert found.images is not None
    assert found.images[0] == png(0)
    bare = read(tmp_path / "data", labels_wanted=False)
    assert bare.labels is None
    assert bare.images == found.images


@pytest.mark.parametrize("form", ["metadata.csv", "metadata.jsonl", "rows.csv", "rows.jsonl"])
def test_paths_in_a_table(tmp_path: Path, form: str) -> None:
    rows = loose_images(tmp_path / "data")
    path = tmp_path / "data" / form
    if form.endswith("csv"):
        path.write_text("file_name,label\n" + "".join(f"{name},{label}\n" for name, label in rows))
    else:
        path.write_text("".join(json.dumps({"file_name": n, "label": x}) + "\n" for n, x in rows))
    found = read(path.parent if form.startswith("metadata") else path)
    assert found.texts == tuple(name for name, _ in rows)
    assert found.labels == ("cat", "dog", "cat")
    assert found.images == tuple(png(number) for number in range(3))
    assert found.column_names == ("file_name", "label")


@pytest.mark.parametrize("wrapped", [True, False])
def test_images_in_parquet(tmp_path: Path, wrapped: bool) -> None:
    pandas = pytest.importorskip("pandas")
    images: list[Any] = [png(number) for number in range(3)]
    if wrapped:
        images = [{"bytes": image, "path": f"{number}.png"} for number, image in enumerate(images)]
    pandas.DataFrame({"image": images, "label": [0, 1, 0]}).to_parquet(tmp_path / "rows.parquet")
    found = read(tmp_path / "rows.parquet")
    assert found.texts == (("0.png", "1.png", "2.png") if wrapped else ("row 1", "row 2", "row 3"))
    assert found.images == tuple(png(number) for number in range(3))
    mapped, _ = TASK.check(found, NAMES)
    assert mapped.labels == ("cat", "dog", "cat")


def idx(array: np.ndarray[Any, Any]) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def idx_pair(folder: Path, *, zipped: bool, labels: int = 4) -> np.ndarray[Any, Any]:
    folder.mkdir(exist_ok=True)
    images = np.random.default_rng(0).integers(0, 256, size=(4, 6, 5), dtype=np.uint8)
    numbers = np.array([0, 1, 0, 1, 1], dtype=np.uint8)[:labels]
    for name, array in (("t10k-images-idx3-ubyte", images), ("t10k-labels-idx1-ubyte", numbers)):
        path = folder / (name + ".gz" * zipped)
        path.write_bytes(gzip.compress(idx(array)) if zipped else idx(array))
    return images


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_files(tmp_path: Path, zipped: bool) -> None:
    images = idx_pair(tmp_path / "data", zipped=zipped)
    found = read(tmp_path / "data")
    assert found.images is not None
    assert found.labels == ("0", "1", "0", "1")
    assert [np.asarray(Image.open(io.BytesIO(image))).tolist() for image in found.images] == images.tolist()
    again = read(tmp_path / "data" / ("t10k-images-idx3-ubyte" + ".gz" * zipped), labels_wanted=False)
    assert (again.images, again.labels) == (found.images, None)


def test_the_content_decides_the_hash(tmp_path: Path) -> None:
    rows = loose_images(tmp_path)
    for name, order in (("a.csv", rows), ("b.csv", rows), ("c.csv", rows[::-1])):
        lines = "".join(f"{path},{label}\n" for path, label in order)
        (tmp_path / name).write_text(("file_name,label\n" if name != "b.csv" else "img,class\n") + lines)
    hashes = [read(tmp_path / name).sha256 for name in ("a.csv", "b.csv", "c.csv")]
    assert hashes[0] == hashes[1] != hashes[2]


def test_columns_can_be_named(tmp_path: Path) -> None:
    loose_images(tmp_path)
    (tmp_path / "a.csv").write_text("where,path,kind\nc.png,nowhere.png,dog\n")
    found = read(tmp_path / "a.csv", columns=Columns(text="where", label="kind"))
    assert (found.texts, found.labels) == (("c.png",), ("dog",))
    with pytest.raises(InputError, match=r"did you mean --text-column where"):
        read(tmp_path / "a.csv", columns=Columns(text="wher"))
    with pytest.raises(InputError, match="one image a row"):
        read(tmp_path / "a.csv", columns=Columns(text_pair="path"))


# --------------------------------------------------------------------------- what is wrong


def broken_folder(folder: Path, damage: str) -> Path:
    class_folders(folder)
    if damage == "an empty class":
        (folder / "bird").mkdir()
    elif damage == "a file of another form":
        (folder / "cat" / "c.heic").touch()
    elif damage == "an image in no class":
        (folder / "x.png").write_bytes(png(1))
    elif damage == "a broken image":
        (folder / "dog" / "z.png").write_bytes(b"words")
    elif damage == "an empty image":
        (folder / "dog" / "z.png").touch()
    elif damage == "splits":
        (folder / "cat").rename(folder / "train")
        (folder / "dog").rename(folder / "test")
    elif damage == "two tables":
        for name in ("metadata.csv", "metadata.jsonl"):
            (folder / name).touch()
    return folder


DAMAGE = {
    "an empty class": "class folder .*bird holds no images",
    "a file of another form": r"c\.heic is no image",
    "an image in no class": "1 images that are in no class",
    "a broken image": r"dog/z\.png is no image that Pillow can read",
    "an empty image": r"dog/z\.png .* no bytes",
    "splits": "holds the splits test, train",
    "two tables": r"metadata\.csv, metadata\.jsonl",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_broken_folders_are_named(damage: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=DAMAGE[damage]):
        read(broken_folder(tmp_path / "data", damage))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("image,label\nnowhere.png,cat\n", r"row 1 of .*nowhere\.png.* cannot be read"),
        ("image,label\nc.png,cat\nwords.png,dog\n", r"row 2 of .*words\.png is no image"),
        ("image,label\n,cat\n", "row 1 of .* holds nothing"),
        ("image,label\nc.png,\n", "row 1 of .* label column"),
        ("image,label\nhttps://a.b/c.png,cat\n", "is an address"),
        ("image,label\nsome,cat\n", "cannot be read"),
        ("text,label\nsome words,cat\n", "rows of text are for --task text-classification"),
        ("image,label\n", "holds no rows"),
    ],
)
def test_broken_tables_are_named(table: str, message: str, tmp_path: Path) -> None:
    loose_images(tmp_path)
    (tmp_path / "words.png").write_text("words")
    (tmp_path / "rows.csv").write_text(table)
    with pytest.raises(InputError, match=message):
        read(tmp_path / "rows.csv")


@pytest.mark.parametrize("value", [3, [1, 2], {"bytes": None, "path": None}, None])
def test_cells_that_are_no_images_are_named(value: Any, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": value, "label": "cat"}) + "\n")
    with pytest.raises(InputError, match="row 1 of"):
        read(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("damage", ["truncated", "magic", "labels missing", "fewer labels", "short", "two sets"])
def test_broken_idx_files_are_named(damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    idx_pair(folder, zipped=damage == "truncated", labels=3 if damage == "fewer labels" else 4)
    images = next(folder.glob("*images*"))
    if damage == "truncated":
        images.write_bytes(images.read_bytes()[:-9])
    elif damage == "magic":
        images.write_bytes(b"\x00\x00\x0d\x03" + images.read_bytes()[4:])
    elif damage == "labels missing":
        next(folder.glob("*labels*")).unlink()
    elif damage == "short":
        images.write_bytes(images.read_bytes()[:-3])
    elif damage == "two sets":
        images.with_name("train-images-idx3-ubyte").write_bytes(images.read_bytes())
    with pytest.raises(InputError):
        read(folder)


def test_images_and_texts_do_not_mix(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "data")
    with pytest.raises(InputError, match="a folder of images is for --task image-classification"):
        get_task("text-classification").read(folder, columns=Columns())
    with pytest.raises(InputError, match="is one image"):
        read(folder / "cat" / "a.png")
    with pytest.raises(InputError, match="no sub-folders"):
        read(folder / ".git")
    with pytest.raises(InputError, match="use --task text-classification"):
        TASK.check(Rows(("a", "b"), None, ("cat", "dog"), "r", "0"), NAMES)
    with pytest.raises(InputError, match="texts are for"):
        TASK.encode(None, {"text": "words"})


def test_labels_that_the_model_does_not_know(tmp_path: Path) -> None:
    found = read(class_folders(tmp_path / "data"))
    with pytest.raises(InputError, match="does not know: dog"):
        TASK.check(found, ("cat", "bird"))
    with pytest.raises(InputError, match="all 2 rows"):
        TASK.check(found.take([0, 1]), NAMES)
    with pytest.raises(InputError, match="no label column"):
        TASK.check(read(tmp_path / "data", labels_wanted=False), NAMES)
    mapped, warnings = TASK.check(found, ("Dog", "CAT"))
    assert mapped.labels == ("CAT", "CAT", "Dog")
    assert "only 3 rows" in warnings[0]
