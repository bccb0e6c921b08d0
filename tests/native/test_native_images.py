"""ViT and DeiT on the native engine: patches are rows, the models' own tokens stand in front of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoder_cases import INT8, Array, adapter_to, exported, opened
from native_here import native_only
from native_reference import expected
from tiny_models import PATCH, SIDE, image_config, shaken

from hasten.models.surgery import keep_heads, keep_layers, keep_neurons
from hasten.records import InputError, Rejected
from hasten.runtimes.native import FACTS, MODEL, NativeConfig
from hasten.runtimes.native_images import lowered_images
from hasten.tasks.wrappers import ImageWrapper

OWN = {"vit": 1, "deit": 2}


def wrapped(family: str, *, cut: bool = False) -> ImageWrapper:
    from transformers import AutoModelForImageClassification, DeiTForImageClassification

    torch.manual_seed(0)
    config = image_config(family)
    made: Any = DeiTForImageClassification if family == "deit" else AutoModelForImageClassification.from_config
    wrapper = ImageWrapper(shaken(made(config)).eval()).eval()
    if cut:
        adapter = adapter_to(wrapper)
        keep_layers(wrapper.hf, adapter, [0, 3])
        for layer, heads, neurons in zip(adapter.layers(wrapper.hf), ([1, 3], [0]), (24, 40), strict=True):
            keep_heads(adapter.attention(layer), heads)
            keep_neurons(adapter.ffn(layer), list(range(neurons)))
    return wrapper


def pixels(count: int = 3) -> dict[str, Array]:
    return {"pixel_values": np.random.default_rng(0).standard_normal((count, 3, SIDE, SIDE)).astype(np.float32)}


def eager(wrapper: ImageWrapper, batch: dict[str, Array]) -> Array:
    with torch.inference_mode():
        found: Array = wrapper(torch.from_numpy(batch["pixel_values"])).numpy()
    return found


def rows_by_hand(image: Array, own: int) -> Array:
    """Zeros for the own tokens, then the numbers of every patch, cut out one by one."""
    rows = [np.zeros(3 * PATCH * PATCH)] * own
    for y in range(0, SIDE, PATCH):
        rows += [image[:, y : y + PATCH, x : x + PATCH].ravel() for x in range(0, SIDE, PATCH)]
    return np.stack(rows)


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("family", OWN)
def test_the_program_is_eager(family: str, cut: bool) -> None:
    wrapper, batch, own = wrapped(family, cut=cut), pixels(), OWN[family]
    made, picture = lowered_images(wrapper, precision="fp32", group=32)
    assert (picture.shape, picture.patch, picture.own) == ((3, SIDE, SIDE), (PATCH, PATCH), own)
    features = np.concatenate([rows_by_hand(image, own) for image in batch["pixel_values"]])
    tokens = own + (SIDE // PATCH) ** 2
    ids = [*range(own), *[own] * (tokens - own)] * 3
    assert np.allclose(
        expected(made.program, ids, lengths=[tokens] * 3, features=features), eager(wrapper, batch), atol=2e-5
    )  # fmt: skip


@native_only
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("family", OWN)
def test_sessions_take_images(family: str, cut: bool, tmp_path: Path) -> None:
    wrapper, batch = wrapped(family, cut=cut), pixels()
    for config, bound in ((NativeConfig(), 2e-5), (NativeConfig(precision="bf16"), 0.1), (INT8, 0.1)):
        exported(wrapper, tmp_path / config.label, config, batch)
        session = opened(tmp_path / config.label, config, threads=2)
        found = session.run(batch)
        assert np.abs(found - eager(wrapper, batch)).max() <= bound
        alone = [session.run({"pixel_values": image[None]}) for image in batch["pixel_values"]]
        assert np.array_equal(np.concatenate(alone), found)
        with pytest.raises(InputError, match="images of shape"):
            session.run({"pixel_values": batch["pixel_values"][:, :, :8]})


STRANGE: list[list[Any]] = [
    [], [3, 16, 16, 4, 4], [3, 16, 16, 4, 4, 0], [3, 16, 16, 5, 4, 1], [3, 16, 16, 4, 4, 3], [3, 16, 16, 8, 8, 2],
    [2**24, 2**24, 2**24, 4, 4, 1], [3, 16, 16, 4, 4, True], [3, 16, 16, 4, 4, 10**9],
]  # fmt: skip


@native_only
@pytest.mark.parametrize("picture", STRANGE, ids=str)
def test_facts_that_fit_no_image_are_refused(picture: list[Any], tmp_path: Path) -> None:
    exported(wrapped("deit"), tmp_path, INT8, pixels())
    facts = json.loads((tmp_path / FACTS).read_text())
    (tmp_path / FACTS).write_text(json.dumps({**facts, "picture": picture}))
    with pytest.raises(Rejected, match=MODEL):
        opened(tmp_path, INT8)


def test_other_models_of_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="this is dinov2"):
        exported(wrapped("dinov2"), tmp_path, INT8, pixels())
