"""Image settings: transformers' own Pillow processors give the same pixels, and what is not understood is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hasten.records import InputError
from hasten.tasks.image_settings import FILE_NAME, settings_of
from hasten.tasks.images import ImageProcessor, centred, shorter_edge
from hasten.tasks.processor import open_processor, sample
from hasten.tasks.tokenize import Tokenizer

VIT = {"image_processor_type": "ViTImageProcessor"}
DEIT = {"image_processor_type": "DeiTImageProcessor"}
BIT = {"image_processor_type": "BitImageProcessor"}
# What transformers' processors are built with, and images of every shape that matters to it.
SETTINGS: dict[str, dict[str, Any]] = {
    "vit": VIT,
    "vit small": {**VIT, "size": {"height": 20, "width": 28}, "resample": 3, "image_mean": [0.1, 0.5, 0.9]},
    "vit by a number": {**VIT, "size": 24, "do_normalize": False},
    "vit unscaled": {**VIT, "size": 24, "do_rescale": False, "resample": 0},
    "vit raw": {**VIT, "size": 24, "do_rescale": False, "do_normalize": False, "resample": 1},
    "vit by another factor": {**VIT, "size": 24, "rescale_factor": 1 / 127.5, "resample": 4},
    "deit": DEIT,
    "deit without a crop": {**DEIT, "do_center_crop": False, "size": [30, 31], "resample": 5},
    "deit cropped wider than it is": {**DEIT, "size": {"height": 21, "width": 40}, "crop_size": 33},
    "deit only cropped": {**DEIT, "do_resize": False, "crop_size": {"height": 31, "width": 32}},
    "dinov2": BIT,
    "dinov2 by a number": {**BIT, "size": 36, "crop_size": {"height": 24, "width": 25}},
}
SIZES = [(64, 48), (48, 65), (33, 33), (7, 90), (1, 1)]


def reference(settings: dict[str, Any]) -> Any:
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
    from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    kinds = {"ViT": ViTImageProcessorPil, "DeiT": DeiTImageProcessorPil, "Bit": BitImageProcessorPil}
    given = {name: value for name, value in settings.items() if name != "image_processor_type"}
    return kinds[settings["image_processor_type"].removesuffix("ImageProcessor")](**given)


def picture(size: tuple[int, int], *, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Noise with a slope, so that filters and orders of steps differ."""
    rng = np.random.default_rng(seed)
    width, height = size
    channels = {"RGB": 3, "L": 1, "RGBA": 4, "LA": 2, "CMYK": 4}[mode]
    values = rng.integers(0, 128, size=(height, width, channels)) + np.linspace(0, 127, width)[None, :, None]
    return Image.frombytes(mode, size, values.astype(np.uint8).tobytes())


def pixels(settings: dict[str, Any], image: object) -> np.ndarray[Any, Any]:
    return ImageProcessor(settings_of(settings)).encode(image).arrays["pixel_values"]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", SETTINGS)
def test_the_same_pixels_as_transformers(name: str, size: tuple[int, int]) -> None:
    image, settings = picture(size), SETTINGS[name]
    found = pixels(settings, image)
    (wanted,) = reference(settings)(image, return_tensors="np")["pixel_values"]
    assert found.dtype == np.float32
    assert found.shape == wanted.shape == settings_of(settings).shape
    assert np.abs(found - wanted).max() <= 1e-5


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA"])
def test_other_modes_where_transformers_converts(mode: str) -> None:
    image = picture((40, 30), mode=mode)
    (wanted,) = reference(BIT)(image, return_tensors="np")["pixel_values"]
    assert np.abs(pixels(BIT, image) - wanted).max() <= 1e-5


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA", "CMYK"])
def test_other_modes_become_colours_as_pillow_makes_them(mode: str) -> None:
    image = picture((40, 30), mode=mode)
    assert np.array_equal(pixels(VIT, image), pixels(VIT, image.convert("RGBA").convert("RGB")))


def test_palettes_and_their_transparency() -> None:
    flat = picture((16, 16)).quantize(8)
    assert np.array_equal(pixels(VIT, flat), pixels(VIT, flat.convert("RGB")))
    flat.info["transparency"] = bytes([0] * 4 + [255] * 4)
    whole, opaque = pixels(BIT, flat), pixels(BIT, flat.convert("RGBA").convert("RGB"))
    assert not np.array_equal(whole, opaque)
    (wanted,) = reference(BIT)(flat, return_tensors="np")["pixel_values"]
    assert np.abs(whole - wanted).max() <= 1e-5


GREY = {
    **VIT,
    "size": {"height": 28, "width": 28},
    "image_mean": [0.286],
    "image_std": [0.353],
    "do_convert_rgb": False,
}


def test_a_grey_model_has_one_channel() -> None:
    image = picture((28, 28), mode="L")
    found = pixels(GREY, image)
    assert found.shape == (1, 28, 28)
    assert np.abs(found[0] - (np.asarray(image) / 255 - 0.286) / 0.353).max() <= 1e-5
    (wanted,) = reference(GREY)(image, return_tensors="np")["pixel_values"]
    assert np.abs(found - wanted).max() <= 1e-5
    assert np.array_equal(pixels(GREY, image.convert("RGB")), found)


def encoded(image: Image.Image, form: str = "PNG", **more: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **more)
    return stream.getvalue()


def test_every_way_to_give_an_image(tmp_path: Path) -> None:
    image = picture((30, 20))
    (tmp_path / "a.png").write_bytes(encoded(image))
    wanted = pixels(VIT, image)
    for other in (encoded(image), tmp_path / "a.png", str(tmp_path / "a.png"), np.asarray(image)):
        assert np.array_equal(pixels(VIT, other), wanted)
    assert np.array_equal(pixels(VIT, memoryview(encoded(image))), wanted)


def test_images_stand_as_their_camera_meant() -> None:
    image = picture((30, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    turned = encoded(image, "PNG", exif=exif.tobytes())
    assert np.array_equal(pixels(VIT, turned), pixels(VIT, image.transpose(Image.Transpose.ROTATE_270)))


BROKEN: dict[str, tuple[object, str]] = {
    "nothing": (b"", "no bytes"),
    "text": (b"label,text\n1,2\n", "no image that Pillow can read"),
    "postscript, which is a program": (encoded(picture((8, 8)), "EPS"), "no image that Pillow can read"),
    "truncated": (encoded(picture((64, 64)), "JPEG")[:700], "cannot be decoded"),
    "truncated png": (encoded(picture((64, 64)))[:-2000], "cannot be decoded"),
    "no pixels": (np.zeros((0, 4), dtype=np.uint8), "at least one pixel"),
    "floats": (np.zeros((4, 4)), "float64"),
    "sixteen bits": (encoded(Image.fromarray(np.full((4, 4), 1000, dtype=np.uint16))), "more than 8 bits"),
    "no such file": ("nowhere.png", "cannot be read"),
    "a zero byte": ("a\0b.png", "cannot be read"),
    "a number": (3, "is a int"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_images_are_named(case: str) -> None:
    image, message = BROKEN[case]
    with pytest.raises(InputError, match=message) as caught:
        ImageProcessor(settings_of(VIT)).encode(image, name="row 3 of rows.csv, cat.png")
    assert "row 3 of rows.csv, cat.png" in str(caught.value)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("factor", [1, 3])
def test_too_many_pixels_are_refused_unread(factor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both above the limit, where Pillow only warns, and above twice of it, where it refuses."""
    content = encoded(picture((100, 11 * factor)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match="too large"):
        ImageProcessor(settings_of({**VIT, "size": 8})).encode(content)


def test_an_edge_that_would_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with pytest.raises(InputError, match="would become"):
        ImageProcessor(settings_of(BIT)).encode(picture((4000, 1)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**VIT, "do_pad": True}, "do_pad"),
        ({**VIT, "do_flip_channel_order": True}, "do_flip_channel_order"),
        ({**VIT, "rescale_offset": 0.5}, "rescale_offset"),
        ({**VIT, "crop_pct": 0.9}, "crop_pct"),
        ({**VIT, "data_format": "channels_last"}, "data_format"),
        ({**VIT, "size": {"longest_edge": 20}}, "longest_edge"),
        ({**VIT, "size": {"shortest_edge": 20}}, "many sizes"),
        ({**VIT, "size": {"shortest_edge": 20, "longest_edge": 30}}, "longest_edge"),
        ({**VIT, "do_resize": False}, "many sizes"),
        ({**VIT, "size": 0}, "whole numbers"),
        ({**VIT, "size": True}, "whole numbers"),
        ({**VIT, "size": "224"}, "a number, height and width"),
        ({**VIT, "resample": 9}, "resample"),
        ({**VIT, "resample": "bicubic"}, "resample"),
        ({**VIT, "do_normalize": "yes"}, "true or false"),
        ({**VIT, "image_mean": [0.5, 0.5]}, "one or three"),
        ({**VIT, "image_mean": [0.5]}, "one or three"),
        ({**VIT, "image_std": [0.0, 1.0, 1.0]}, "above zero"),
        ({**VIT, "rescale_factor": 0}, "above zero"),
        ({**GREY, "do_convert_rgb": True}, "grey or colour"),
        ({"image_processor_type": "ConvNextImageProcessor"}, "ConvNextImageProcessor"),
        ({"size": 224}, "not given"),
    ],
)
def test_settings_that_cannot_be_done_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings_of(settings)


def test_settings_that_are_off_or_silent_pass() -> None:
    quiet = {"do_pad": False, "crop_pct": None, "processor_class": "X", "data_format": "channels_first"}
    assert settings_of({**VIT, **quiet}) == settings_of(VIT)
    for name in ("ViTFeatureExtractor", "ViTImageProcessorFast", "ViTImageProcessorPil"):
        assert settings_of({"image_processor_type": name}) == settings_of(VIT)
    assert settings_of({"feature_extractor_type": "ViTFeatureExtractor"}) == settings_of(VIT)
    assert settings_of({**VIT, "image_mean": 0.5, "image_std": 0.5}) == settings_of(VIT)


def test_what_transformers_saves_is_understood(tmp_path: Path) -> None:
    for settings in (VIT, DEIT, BIT):
        reference(settings).save_pretrained(tmp_path)
        assert settings_of(json.loads((tmp_path / FILE_NAME).read_text())) == settings_of(settings)


def test_centre_and_edges() -> None:
    grid = np.arange(12).reshape(1, 3, 4)
    assert centred(grid, (1, 2)).tolist() == [[[5, 6]]]
    assert centred(grid, (5, 2))[0].tolist() == [[0, 0], [1, 2], [5, 6], [9, 10], [0, 0]]
    assert shorter_edge((30, 20), 10) == (10, 15)
    assert shorter_edge((20, 31), 10) == (15, 10)


def test_a_processor_from_its_files(tmp_path: Path) -> None:
    from tiny_models import save_tokenizer

    save_tokenizer(tmp_path)
    words = {"tokenizer.json": (tmp_path / "tokenizer.json").read_bytes()}
    found = open_processor(words, max_length=9)
    assert isinstance(found, Tokenizer)
    assert found.max_length == 9
    assert sample(found).length > 1
    images = open_processor({FILE_NAME: json.dumps(VIT).encode()}, max_length=9)
    assert isinstance(images, ImageProcessor)
    assert images.max_length == 1
    assert sample(images).arrays["pixel_values"].shape == (3, 224, 224)
    for files in ({}, {"a": b""}, {FILE_NAME: b"{"}, {FILE_NAME: b"[]"}, {FILE_NAME: b"\xff"}):
        with pytest.raises(InputError):
            open_processor(files, max_length=9)


@pytest.mark.real
def test_the_real_checkpoint_asks_for_what_is_here(shared: Path) -> None:
    content = json.loads((shared / "models" / "vit-fashion" / FILE_NAME).read_text())
    image = picture((28, 28), mode="L")
    (wanted,) = reference(content)(image, return_tensors="np")["pixel_values"]
    assert np.abs(pixels(content, image) - wanted).max() <= 1e-5
