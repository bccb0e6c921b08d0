"""What a checkpoint does to an image before it looks: its ``preprocessor_config.json``, understood or refused.

Takes the parsed file, gives :class:`ImageSettings`. What the file leaves out is what transformers' processor of that
name would put in. A setting that changes pixels and is not known here is an error, never ignored.

Legend: C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hasten.records import InputError

FILE_NAME = "preprocessor_config.json"
Size = tuple[int, int]

_COMMON: Mapping[str, Any] = {
    "do_resize": True, "do_center_crop": False, "do_rescale": True, "do_normalize": True, "do_convert_rgb": False,
    "rescale_factor": 1 / 255, "default_to_square": True, "image_mean": (0.5,) * 3, "image_std": (0.5,) * 3,
}  # fmt: skip
# By image_processor_type, without its endings "Fast" and "Pil".
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "ViTImageProcessor": {"resample": 2, "size": {"height": 224, "width": 224}},
    "DeiTImageProcessor": {
        "resample": 3, "size": {"height": 256, "width": 256}, "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
    },
    # DINOv2's
    "BitImageProcessor": {
        "resample": 3, "size": {"shortest_edge": 224}, "default_to_square": False, "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224}, "do_convert_rgb": True,
        "image_mean": (0.48145466, 0.4578275, 0.40821073), "image_std": (0.26862954, 0.26130258, 0.27577711),
    },
}  # fmt: skip
_KNOWN = {*_COMMON, "resample", "size", "crop_size", "image_processor_type", "feature_extractor_type"}
# These say nothing of pixels, or (pad_size) only with another that is refused.
_QUIET = {
    "processor_class", "_valid_processor_keys", "return_tensors", "device", "disable_grouping", "image_seq_length",
    "input_data_format", "pad_size", "transformers_version",
}  # fmt: skip
_RESAMPLERS = range(6)
_MOST_PIXELS = 16_384


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """In the order in which it is done. ``resize``: to (H, W), or the shorter edge to a number of pixels, or not at
    all; ``resample`` is Pillow's filter; ``crop``: (H, W) around the centre; then v -> (v ``scale`` - mean) / std.

    ``on_white``: what is transparent lies on white, and is not just taken for opaque.
    """

    resize: Size | int | None
    resample: int
    crop: Size | None
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    on_white: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """[C, H, W] of every image that was prepared."""
        size = self.crop or self.resize
        assert isinstance(size, tuple)
        return (len(self.mean), *size)


def settings_of(content: Mapping[str, Any]) -> ImageSettings:
    """Settings of a parsed ``preprocessor_config.json``. Raises InputError for what cannot be done exactly."""
    kind = _kind(content)
    _refuse_unknown(content)
    given = {**_COMMON, **_DEFAULTS[kind], **{name: value for name, value in content.items() if value is not None}}
    resize = _size(given, "size", square=_flag(given, "default_to_square")) if _flag(given, "do_resize") else None
    crop = _size(given, "crop_size", square=True) if _flag(given, "do_center_crop") else None
    if isinstance(crop, int) or (crop is None and not isinstance(resize, tuple)):
        raise _wrong(
            f"size {given.get('size')} and crop_size {given.get('crop_size')} leave images of many sizes",
            "a height and a width for all of them: the model takes batches",
        )
    if given["resample"] not in _RESAMPLERS:
        raise _wrong(f"resample is {given['resample']!r}", "one of Pillow's filters, 0 to 5")
    mean, std = _mean_and_std(given)
    return ImageSettings(
        resize=resize,
        resample=int(given["resample"]),
        crop=crop,
        scale=_number(given, "rescale_factor") if _flag(given, "do_rescale") else 1.0,
        mean=mean,
        std=std,
        on_white=_flag(given, "do_convert_rgb"),
    )


def _kind(content: Mapping[str, Any]) -> str:
    """The processor that the file is of; older files say which "feature extractor"."""
    said = str(content.get("image_processor_type") or content.get("feature_extractor_type") or "")
    name = said.removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    if name not in _DEFAULTS:
        raise _wrong(
            f"image_processor_type is {said or 'not given'}",
            f"one of {', '.join(_DEFAULTS)}: others may do more than their settings say",
        )
    return name


def _refuse_unknown(content: Mapping[str, Any]) -> None:
    """What is off (``null`` or ``false``) does nothing under whatever name."""
    for name, value in content.items():
        if name == "data_format" and value == "channels_first":
            continue
        if name not in _KNOWN | _QUIET and value is not None and value is not False:
            raise _wrong(f"{name} is {str(value)[:60]}", f"settings that are known here: {', '.join(sorted(_KNOWN))}")


def _flag(given: Mapping[str, Any], name: str) -> bool:
    value = given[name]
    if not isinstance(value, bool):
        raise _wrong(f"{name} is {value!r}", "true or false")
    return value


def _number(given: Mapping[str, Any], name: str) -> float:
    value = given[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise _wrong(f"{name} is {value!r}", "a number above zero")
    return float(value)


def _size(given: Mapping[str, Any], name: str, *, square: bool) -> Size | int:
    """(H, W), or the shorter edge alone. A bare number is either, as ``square`` says."""
    value = given.get(name)
    if isinstance(value, Mapping):
        value = {key: pixels for key, pixels in value.items() if pixels is not None}
        if set(value) == {"height", "width"}:
            return _pixels(value["height"], name), _pixels(value["width"], name)
        if set(value) == {"shortest_edge"}:
            return _pixels(value["shortest_edge"], name)
    elif isinstance(value, (list, tuple)) and len(value) == 2:
        return _pixels(value[0], name), _pixels(value[1], name)
    elif isinstance(value, int):
        edge = _pixels(value, name)
        return (edge, edge) if square else edge
    raise _wrong(f"{name} is {value}", "a number, height and width, or shortest_edge")


def _pixels(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MOST_PIXELS:
        raise _wrong(f"{name} holds {value!r}", f"whole numbers from 1 to {_MOST_PIXELS}")
    return value


def _mean_and_std(given: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """One number a channel, three unless the file has one: a grey model says so by its single mean."""
    mean, std = _channels(given, "image_mean"), _channels(given, "image_std")
    if len(mean) != len(std) or len(mean) not in (1, 3) or not all(value > 0 for value in std):
        raise _wrong(f"image_mean is {mean} and image_std is {std}", "one or three of each, deviations above zero")
    if len(mean) == 1 and _flag(given, "do_convert_rgb"):
        raise _wrong("image_mean is of one channel, and do_convert_rgb makes three", "either grey or colour")
    if not _flag(given, "do_normalize"):
        return (0.0,) * len(mean), (1.0,) * len(mean)
    return mean, std


def _channels(given: Mapping[str, Any], name: str) -> tuple[float, ...]:
    value = given[name]
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,) * 3
    if not all(isinstance(x, (int, float)) and not isinstance(x, bool) and abs(x) < 1e6 for x in values):
        raise _wrong(f"{name} is {value!r}", "a number a channel")
    return tuple(float(x) for x in values)


def _wrong(got: str, expected: str) -> InputError:
    return InputError(
        f"{FILE_NAME}: {got}", expected=expected,
        remedy="correct the file, or save the image processor that the model was trained with",
    )  # fmt: skip
